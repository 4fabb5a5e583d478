import sys

import pytest
from webdataset import TarWriter

from tests.support.made_sources import Counted, Records
from tests.support.tars import picture
from tests.support.tiny import maker_of
from visllama.data.datamodule import TrainingSamples
from visllama.data.order import Order
from visllama.data.source import count_items
from visllama.data.sources import (
    build_source,
    build_sources,
    fingerprint,
    judged_sources,
)
from visllama.errors import ConfigError

SCENES = {"_target_": "visllama.data.scenes.source.ScenesSource", "num_records": 3, "captions_per_record": 2}


def test_the_caller_says_which_split():
    train, val = (build_source("data.sources.a", SCENES, split, []) for split in ("train", "val"))
    assert (train[0]["key"], val[0]["key"]) == ("train-000000", "val-000000")


def test_how_a_source_is_mixed_in_is_not_its_own_business():
    assert len(build_source("data.sources.a", SCENES | {"weight": 0.3, "prompt": "say"}, "train", [])) == 3


def test_several_sources_go_by_their_names():
    sources = build_sources({"a": SCENES, "b": SCENES | {"num_records": 2, "captions_per_record": 1}}, "train", [])
    assert list(sources) == ["a", "b"] and [count_items(s) for s in sources.values()] == [6, 2]


def test_a_source_of_another_kind_than_its_task_judges_is_refused():
    asked = {"task": "caption", "split": "test", "source": SCENES | {"captions_per_record": None, "holds": "questions"}}
    with pytest.raises(
        ConfigError,
        match=r"evaluation\.mine\.source: task=caption judges captions, and it holds records 3 of questions",
    ):
        judged_sources({"mine": asked}, [])
    assert len(judged_sources({"mine": asked | {"task": "vqa"}}, [])["mine"]) == 3


def test_another_class_or_size_has_another_fingerprint():
    class Others(Records):
        pass

    sources = (Records([1]), Records([1, 2]), Others([1, 2]), Records([3, 4]))
    assert len({fingerprint(source) for source in sources}) == 3, "what it holds, it has to say itself"


def test_other_counts_or_shards_have_another_fingerprint():
    sources = [Counted([2, 3]), Counted([3, 2]), Counted([3, 2], [2]), Counted([3, 2])]
    assert len({fingerprint(source) for source in sources}) == 3, "the order of items rests on them"


def test_sources_hold_questions_too(tmp_path):
    with TarWriter(str(tmp_path / "a.tar")) as tar:
        asked = [{"question": "what?", "answers": ["a"], "id": 3}]
        tar.write({"__key__": "a", "jpg": picture(), "json": {"questions": asked}})
    node = {
        "_target_": "visllama.data.shards.source.ShardSource",
        "path": str(tmp_path / "a.tar"),
        "val_fraction": None,
    }
    assert build_source("data.sources.v", node, "train", [])[0]["questions"] == asked


def test_errors_name_the_key():
    with pytest.raises(ConfigError, match=r"data\.sources\.mine: split=none: scenes has train, val, test"):
        build_source("data.sources.mine", SCENES, "none", [])
    with pytest.raises(ConfigError, match=r"evaluation\.x\.source: path=/nowhere"):
        node = {"_target_": "visllama.data.shards.source.ShardSource", "path": "/nowhere"}
        judged_sources({"x": {"source": node, "split": "val", "task": "caption"}}, [])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("class Mine:\n    __len__ = lambda self: 1\n    __getitem__ = dict.get", r"derive it from .*, as class Mine\(Source\)"),
        ("class Mine(Source):\n    __len__ = lambda self: 1", "it has no __getitem__"),
    ],
)  # fmt: skip
def test_a_class_that_is_no_source_is_refused_with_what_it_lacks(tmp_path, monkeypatch, body, says):
    (tmp_path / "bare.py").write_text(f"from visllama.data.source import Source\n{body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with pytest.raises(ConfigError, match=rf"^data\.sources\.a\._target_=bare\.Mine:? is no source: {says}"):
            build_source("data.sources.a", {"_target_": "bare.Mine"}, "train", ["bare"])
    finally:
        sys.modules.pop("bare", None)


OWN = """
from PIL import Image
from visllama.data.source import Source


class Mine(Source):
    def __init__(self, split, bad):
        self.bad = bad

    def __len__(self):
        return 3

    def __getitem__(self, index):
        captions = "a red circle" if index >= self.bad else ["a red circle"]
        return {"key": str(index), "image": Image.new("RGB", (9, 9)), "captions": captions}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_source.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda bad: build_source(
        "data.sources.mine", {"_target_": "own_source.Mine", "bad": bad}, "train", ["own_source"]
    )
    sys.modules.pop("own_source", None)


def test_a_source_whose_first_record_is_none_is_refused_before_any_weight_is_loaded(own):
    message = r"^data\.sources\.mine\._target_=own_source\.Mine: its first record '0': has no captions: they are a list"
    with pytest.raises(ConfigError, match=message):
        own(bad=0)


def test_a_later_record_that_is_none_is_masked_like_one_of_a_shard(own, make_model):
    source = own(bad=2)
    maker = maker_of(make_model())
    order = Order({"mine": source.shard_items}, {"mine": 1.0}, 3, 0)
    samples = [TrainingSamples({"mine": source}, {"mine": maker}, order)[position] for position in range(3)]
    faults = {sample.key: sample.fault and str(sample.fault) for sample in samples}
    assert {fault is None for key, fault in faults.items() if "#" in key} == {True} and len(faults) == 3
    assert "text: '2': has no captions: they are a list, not str" in faults["mine/2"]


class OnlyTrain(Records):
    def __init__(self, split):
        super().__init__({"train": [1, 2]}[split])


def test_a_source_that_cannot_be_made_is_named_with_its_split():
    node = {"_target_": f"{__name__}.OnlyTrain"}
    with pytest.raises(
        ConfigError, match=r"data\.sources\.a\._target_=.*OnlyTrain: .* for split=val \(KeyError: 'val'\)"
    ):
        build_source("data.sources.a", node, "val", [__name__.partition(".")[0]])
