import pytest
from webdataset import TarWriter

from tests.data.test_shards import picture
from visllama.config import ConfigError
from visllama.data.sources import (
    build_source,
    build_sources,
    count_pairs,
    fingerprint,
    judged_sources,
    shard_sizes,
)

SCENES = {"_target_": "visllama.data.scenes.source.ScenesSource", "num_records": 3, "captions_per_record": 2}


def test_the_caller_says_which_split():
    train, val = (build_source("data.sources.a", SCENES, split, []) for split in ("train", "val"))
    assert (train[0]["key"], val[0]["key"]) == ("train-000000", "val-000000")


def test_how_a_source_is_mixed_in_is_not_its_own_business():
    assert len(build_source("data.sources.a", SCENES | {"weight": 0.3, "prompt": "say"}, "train", [])) == 3


def test_several_sources_go_by_their_names():
    sources = build_sources({"a": SCENES, "b": SCENES | {"num_records": 2, "captions_per_record": 1}}, "train", [])
    assert list(sources) == ["a", "b"] and [count_pairs(s) for s in sources.values()] == [6, 2]


def test_a_source_of_another_kind_than_its_task_judges_is_refused():
    asked = {"task": "caption", "split": "test", "source": SCENES | {"captions_per_record": None, "holds": "questions"}}
    with pytest.raises(
        ConfigError,
        match=r"evaluation\.mine\.source: task=caption judges captions, and it holds records 3 of questions",
    ):
        judged_sources({"mine": asked}, [])
    assert len(judged_sources({"mine": asked | {"task": "vqa"}}, [])["mine"]) == 3


@pytest.mark.parametrize(("count", "sizes"), [(3, [1, 1, 1]), (65_536, [1] * 65_536), (65_537, [2] * 32_768 + [1])])
def test_a_source_without_shards_is_cut_into_blocks(count, sizes):
    assert shard_sizes(range(count)) == sizes


def test_another_class_or_size_has_another_fingerprint():
    assert len({fingerprint(s) for s in ([1], [1, 2], (1, 2), [3, 4])}) == 3, "what it holds, it has to say itself"


def test_sources_hold_questions_too(tmp_path):
    with TarWriter(str(tmp_path / "a.tar")) as tar:
        asked = [{"question": "what?", "answers": ["a"], "id": 3}]
        tar.write({"__key__": "a", "jpg": picture(), "json": {"questions": asked}})
    node = {"_target_": "visllama.data.shards.ShardSource", "path": str(tmp_path / "a.tar"), "val_fraction": None}
    assert build_source("data.sources.v", node, "train", [])[0]["questions"] == asked


def test_a_source_that_does_not_count_pairs_has_one_a_record():
    assert count_pairs(["a", "b"]) == 2


def test_errors_name_the_key():
    with pytest.raises(ConfigError, match=r"data\.sources\.mine: split=none: scenes has train, val, test"):
        build_source("data.sources.mine", SCENES, "none", [])
    with pytest.raises(ConfigError, match=r"evaluation\.x\.source: path=/nowhere"):
        node = {"_target_": "visllama.data.shards.ShardSource", "path": "/nowhere"}
        judged_sources({"x": {"source": node, "split": "val", "task": "caption"}}, [])
