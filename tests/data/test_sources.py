import pytest

from visllama.config import ConfigError
from visllama.data.sources import build_source, count_pairs, judged_sources

SCENES = {"_target_": "visllama.data.scenes.source.ScenesSource", "num_records": 3, "captions_per_record": 2}


def test_the_caller_says_which_split():
    train, val = (build_source({"data.sources.a": SCENES}, split, []) for split in ("train", "val"))
    assert (train[0]["key"], val[0]["key"]) == ("train-000000", "val-000000")


def test_several_sources_stand_one_behind_the_other():
    source = build_source({"a": SCENES, "b": SCENES | {"num_records": 2, "captions_per_record": 1}}, "train", [])
    assert len(source) == 5 and count_pairs(source) == 3 * 2 + 2


def test_a_source_that_does_not_count_pairs_has_one_a_record():
    assert count_pairs(["a", "b"]) == 2


def test_errors_name_the_key():
    with pytest.raises(ConfigError, match=r"data\.sources\.mine: split=none: scenes has train, val, test"):
        build_source({"data.sources.mine": SCENES}, "none", [])
    with pytest.raises(ConfigError, match=r"evaluation\.x\.source: path=/nowhere"):
        node = {"_target_": "visllama.data.shards.ShardSource", "path": "/nowhere"}
        judged_sources({"x": {"source": node, "split": "val"}}, [])
