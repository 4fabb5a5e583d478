"""The keys of each source: those that its YAML holds, those that are required, and values that are wrong."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from tests.prepare.made import table
from visllama.config.explain import known_groups
from visllama.config.plain import plain
from visllama.errors import ConfigError
from visllama.prepare.keys import check_prepare, hints

SOURCES = known_groups()["source"]


@pytest.mark.parametrize("source", SOURCES)
def test_the_yaml_of_a_source_holds_just_the_keys_that_it_reads(compose_config, source):
    cfg = compose_config("prepare", f"source={source}")
    assert set(cfg) - {"source", "out", "seed", "plugins", "paths", "name"} == set(hints(source)) - {"name"}
    assert cfg.source == source


@pytest.mark.parametrize("source", SOURCES)
def test_required_keys_are_named_with_the_call(compose_config, source):
    cfg = compose_config("prepare", f"source={source}")
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        with pytest.raises(ConfigError, match=rf"no value for {', '.join(missing)}: visllama prepare source={source} "):
            check_prepare(plain(cfg))
    else:
        check_prepare(plain(cfg))


@pytest.mark.parametrize(
    ("source", "typed", "says"),
    [
        ("folder", "images=3", "images=3: must be str, not int"),
        ("folder", "images=[a,b]", "images=.*: must be str, not list"),
        ("folder", "images=FILES/t.csv", "images=.*: no such folder"),
        ("folder", "table=FILES", "a folder: name the file"),
        ("folder", "workers=many", "workers=many: must be int"),
        ("folder", "workers=0", "workers=0"),
        ("folder", "workers=100000", "workers=100000"),
        ("folder", "shard_size_mb=0", "shard_size_mb=0"),
        ("folder", "max_bad_fraction=2", "max_bad_fraction=2"),
        ("folder", "split=dev", "split=dev: choose train"),
        ("folder", "check_only=maybe", "check_only=maybe: must be bool"),
        ("folder", "name=../x", r"name=\.\./x"),
        ("folder", "name=null", "name=null"),
        ("folder", "out=FILES/t.csv/x", "out=.*: .*t.csv is a file"),
        ("folder", "+foo=1", "foo: source=folder has no such key"),
        ("folder", "+shard_size=1", "did you mean shard_size_mb"),
        ("shards", "from=nowhere.tar", "from=nowhere.tar: no tar"),
        ("shards", "from=pipe:x", "from=pipe:x|pipe:x: 'pipe:' runs a command"),
        ("shards", "from=s3://a/b", "name the tars"),
        ("cc3m", "list=no.tsv", "list=no.tsv: no such file"),
        ("cc3m", "list=FILES/t.csv part=5/4", "part=5/4: write it as"),
        ("coyo", "list=FILES/t.csv min_success=2", "min_success=2"),
        ("scenes", "threads=0", "threads=0"),
    ],
)
def test_wrong_values_are_refused_by_their_key(compose_config, tmp_path, source, typed, says):
    file = table(tmp_path)
    right = [f"images={tmp_path}/images", f"table={file}"] if source == "folder" else []
    cfg = compose_config("prepare", f"source={source}", *right, *typed.replace("FILES", str(tmp_path)).split())
    with pytest.raises(ConfigError, match=says):
        check_prepare(plain(cfg))
