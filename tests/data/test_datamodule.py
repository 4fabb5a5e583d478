from pathlib import Path

import pytest
from webdataset import TarWriter

from tests.support import tiny
from tests.support.made_sources import Damaged, Records
from tests.support.tars import picture
from tests.support.tiny import maker_of, tiny_parts
from visllama.data.order import Order
from visllama.data.scenes.source import ScenesSource
from visllama.data.shards.source import ShardSource
from visllama.data.source import Source, count_items
from visllama.errors import REASONS, ConfigError
from visllama.model.weights import build_model


@pytest.fixture(scope="module")
def model():
    return build_model(tiny_parts(), ("connector", "markers"))


class Ranks:
    """What the data asks of a Trainer."""

    def __init__(self, rank: int, num_ranks: int) -> None:
        self.global_rank, self.world_size = rank, num_ranks


def data_of(model, rank=0, num_ranks=1, captions=1, num_steps=6, train=None, batch=8, seed=1, **more):
    train = train or {"scenes": ScenesSource("train", 20, captions)}
    data = tiny.data_of(model, train, ScenesSource("val", 11, 5), batch, num_steps, 3, seed, **more)
    data.trainer = Ranks(rank, num_ranks)
    return data


def keys(loader) -> list[list[str]]:
    return [step["keys"] for step in loader]


def test_length_is_the_whole_run(model):
    loader = data_of(model).train_dataloader()
    assert len(loader) == 6 and len(keys(loader)) == 6
    seen = [key for step in keys(loader) for key in step]
    assert sorted(seen[:20]) == sorted(set(seen)) and sorted(seen[20:40]) == sorted(set(seen))


@pytest.mark.parametrize("num_ranks", [2, 3, 5, 8, 16])
def test_every_rank_count_makes_the_same_global_batches(model, num_ranks):
    alone = keys(data_of(model).train_dataloader())
    ranks = [keys(data_of(model, rank, num_ranks).train_dataloader()) for rank in range(num_ranks)]
    assert {len(steps) for steps in ranks} == {6}, "ranks must make equally many steps"
    assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == alone


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_nothing(model, num_workers):
    assert keys(data_of(model, num_workers=num_workers).train_dataloader()) == keys(data_of(model).train_dataloader())


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_validation_shows_each_record_once(model, num_ranks):
    seen = [
        key
        for rank in range(num_ranks)
        for step in keys(data_of(model, rank, num_ranks).val_dataloader())
        for key in step
    ]
    assert sorted(seen) == [f"scenes/val-{i:06d}" for i in range(11)]


def shown(data, num_samples: int) -> list[tuple]:
    """Return the record and the tokens of each sample."""
    samples = data.train_dataloader().samples
    return [
        (sample.key.partition("#")[0], tuple(sample.input_ids))
        for sample in map(samples.__getitem__, range(num_samples))
    ]


def to_show(data, name: str, kind: str) -> list[tuple]:
    """Return the record and the tokens of each item of a source."""
    source, maker = data.train[name], data.makers[name]
    expected = []
    for record in map(source.__getitem__, range(len(source))):
        for index in range(len(record[kind])):
            expected.append((f"{name}/{record['key']}", tuple(maker(record, index).input_ids)))
    return expected


def test_one_pass_shows_every_question_once_however_many_a_picture_has(model):
    """One pass over records, each showing another question, left out 12 to 20% of VQAv2's and showed others five times."""
    source = ScenesSource("train", 30, holds="questions")
    assert len(set(source.item_counts)) > 1
    data = data_of(model, train={"vqa": source})
    assert sorted(shown(data, count_items(source))) == sorted(to_show(data, "vqa", "questions"))


@pytest.mark.parametrize("counted", [True, False])
def test_a_record_shows_each_of_its_captions(model, counted):
    """Counted, in one pass of 100 items; where a source does not count, in five passes of 20 records."""
    source = ScenesSource("train", 20, 5)
    data = data_of(model, train={"scenes": source if counted else Records(source)})
    assert sorted(shown(data, 100)) == sorted(to_show(data, "scenes", "captions"))
    if not counted:
        first_pass = [key for key, _ in shown(data, 20)]
        assert len(set(first_pass)) == 20


def test_a_record_that_holds_other_items_than_counted_is_masked(model):
    source = Records(ScenesSource("train", 4, 5))
    source.item_counts = [5, 4, 5, 6]
    data = data_of(model, train={"scenes": source}, num_steps=2, batch=10)
    faults = [fault for step in data.train_dataloader() for fault in step["faults"] if fault]
    assert len(faults) == 10 and {fault[1] for fault in faults} == {"text"}
    assert faults[0][2].endswith("holds 5 items, and its source counts 4 in it") or "counts 6" in faults[0][2]


def write_questions(folder: Path, counts: list[list[int]]) -> str:
    """Write a tar for each list of numbers of questions; every third record has a low score."""
    folder.mkdir()
    for shard, of_shard in enumerate(counts):
        with TarWriter(str(folder / f"{shard:05d}.tar")) as tar:
            for number, count in enumerate(of_shard):
                asked = [{"question": f"{number} {i}?", "answers": ["a"], "id": i} for i in range(count)]
                text = {"questions": asked, "score": 0.1 if number % 3 == 2 else 0.9}
                tar.write({"__key__": f"{number:04d}", "jpg": picture(number), "json": text})
    return str(folder)


COUNTS = [[3, 11, 1, 4], [2, 7, 5, 9, 1, 6], [11], [10, 1, 3, 2, 3, 1]]
"""The numbers of questions of each record, shard by shard: 80 in all, and 64 in those that pass the filter."""


@pytest.mark.parametrize(("filter", "batch"), [({}, 4), ({"score": [0.5, None]}, 8)])
@pytest.mark.parametrize("full_shuffle", [0, 2**16])
def test_each_question_of_shards_comes_once_a_pass_on_any_ranks_and_workers(
    model, tmp_path, filter, batch, full_shuffle
):
    source = ShardSource("train", write_questions(tmp_path / "vqa", COUNTS), filter=filter, val_fraction=None)
    expected = [
        f"vqa/{shard:05d}/{number:04d}#{index}"
        for shard, of_shard in enumerate(COUNTS)
        for number, count in enumerate(of_shard)
        if not filter or number % 3 != 2
        for index in range(count)
    ]
    assert count_items(source) == len(expected) == sum(source.shard_items) and len(expected) % batch == 0
    steps_a_pass = len(expected) // batch

    def loader(rank, num_ranks, num_workers=0):
        data = data_of(model, rank, num_ranks, num_steps=2 * steps_a_pass, train={"vqa": source}, batch=batch)
        data.num_workers = num_workers
        data.order = Order({"vqa": source.shard_items}, {"vqa": 1.0}, batch, 1, 2, full_shuffle)
        return data.train_dataloader()

    alone = keys(loader(0, 1))
    for number in range(2):
        of_pass = alone[number * steps_a_pass : (number + 1) * steps_a_pass]
        assert sorted(key for step in of_pass for key in step) == sorted(expected)
    assert keys(loader(0, 1, num_workers=2)) == alone

    # Stopped in the middle of the first pass, gone on with three ranks.
    first = loader(0, 1)
    steps = iter(first)
    for _ in range(steps_a_pass // 2):
        next(steps)
    rest = []
    for rank in range(3):
        resumed = loader(rank, 3)
        resumed.load_state_dict(first.state_dict())
        rest.append(keys(resumed))
    assert [sum(parts, []) for parts in zip(*rest, strict=True)] == alone[steps_a_pass // 2 :]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_another_loader_goes_on_where_the_first_one_stopped(model, num_ranks):
    """Saved with one rank, or two, after two steps; gone on with any number of ranks and another of workers."""
    alone = keys(data_of(model).train_dataloader())
    loader = data_of(model, 0, 2).train_dataloader()
    steps = iter(loader)
    next(steps), next(steps)
    state = loader.state_dict()
    assert state["samples_seen"] == 16
    rest = []
    for rank in range(num_ranks):
        resumed = data_of(model, rank, num_ranks, num_workers=rank % 2).train_dataloader()
        resumed.load_state_dict(state)
        assert len(resumed) == 6, "the whole run's"
        rest.append(keys(resumed))
    assert [sum(parts, []) for parts in zip(*rest, strict=True)] == alone[2:]


def test_another_order_is_refused_on_resume(model):
    state = data_of(model).train_dataloader().state_dict()
    other = data_of(model, train={"scenes": ScenesSource("train", 19, 1)}, seed=2)
    with pytest.raises(ConfigError, match=r"another order \(seed: 1 then, 2 now; sources: .* then, .* now\)"):
        other.train_dataloader().load_state_dict(state)
    accepted = data_of(model, seed=2, allow_reorder=True).train_dataloader()
    accepted.load_state_dict(state)
    assert accepted.step == 0


@pytest.mark.parametrize("allow_reorder", [False, True])
def test_another_batch_is_refused_always(model, allow_reorder):
    """Steps are counted in batches: where a run stands would be another place."""
    state = data_of(model).train_dataloader().state_dict()
    other = data_of(model, batch=4, allow_reorder=allow_reorder).train_dataloader()
    with pytest.raises(ConfigError, match=r"size=4: the run has 8, .*allow_reorder=true .* not another batch"):
        other.load_state_dict(state)


def test_a_checkpoint_of_the_order_before_is_refused_with_both_versions(model):
    """In version 2 a position named a record, of which each pass showed one item."""
    state = data_of(model).train_dataloader().state_dict()
    assert state["rests_on"]["order_version"] == 3
    before = state | {"samples_seen": 16, "rests_on": state["rests_on"] | {"order_version": 2}}
    with pytest.raises(ConfigError, match=r"version 2 of the order .*has version 3.*data\.allow_reorder=true"):
        data_of(model).train_dataloader().load_state_dict(before)
    accepted = data_of(model, allow_reorder=True).train_dataloader()
    accepted.load_state_dict(before)
    assert accepted.step == 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_cannot_be_read_is_masked_in_its_place(model, num_workers):
    """The order never shifts: whole and damaged sources give the same keys elsewhere."""
    bad = dict(zip((3, 11, 17), REASONS, strict=False))
    whole = [step for step in data_of(model).train_dataloader()]
    damaged = [
        step for step in data_of(model, num_workers=num_workers, train={"scenes": Damaged(bad)}).train_dataloader()
    ]
    masked = 0
    for step, expected in zip(damaged, whole, strict=True):
        for key, was, fault in zip(step["keys"], expected["keys"], step["faults"], strict=True):
            if fault is None:
                assert key == was
            else:
                masked += 1
                index = int(key.removeprefix("scenes/"))
                assert was == f"scenes/train-{index:06d}#0" and fault == ("scenes", bad[index], f"record {index}")
        num_bad = sum(fault is not None for fault in step["faults"])
        assert step["num_samples"] == 8 and sum(len(b["input_ids"]) for b in step["micro_batches"]) == 8
        assert sum(len(b["pixel_values"]) for b in step["micro_batches"]) >= 8 - num_bad
        assert (step["num_targets"] < expected["num_targets"]) == bool(num_bad)
    assert masked == sum(key in {f"scenes/train-{i:06d}#0" for i in bad} for step in whole for key in step["keys"])


def test_a_sample_with_nothing_to_learn_is_counted(model):
    data = data_of(model)
    data.makers = {"scenes": maker_of(model, prompt="a b c d e f g h", max_text_tokens=3)}
    step = next(iter(data.train_dataloader()))
    assert {fault[1] for fault in step["faults"]} == {"no_target"} and step["num_targets"] == 0


class ManyImages(Source):
    """Conversations over 45 images each: 45 spans of 12 are 540 tokens, of 512 positions."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict:
        record = ScenesSource("train", 20, 1)[index]
        turns = [{"from": "human", "value": "<image>" * 45}, {"from": "gpt", "value": "a red square"}]
        return {"key": record["key"], "images": [record["image"]] * 45, "conversations": turns}


def test_a_sample_past_the_positions_is_masked_and_counted(model):
    data = data_of(model, train={"many": ManyImages()})
    maker = maker_of(model)
    maker.num_positions = model.num_positions
    data.makers = {"many": maker}
    step = next(iter(data.train_dataloader()))
    assert {fault[1] for fault in step["faults"]} == {"positions"} and step["num_targets"] == 0
    assert "45 images" in step["faults"][0][2] and "512 positions" in step["faults"][0][2]


def test_sources_are_mixed_by_their_weights(model):
    train = {"a": ScenesSource("train", 9, 1), "b": ScenesSource("val", 40, 1)}
    seen = [key for step in keys(data_of(model, train=train, num_steps=64).train_dataloader()) for key in step]
    assert (
        abs(sum(key.startswith("a/train") for key in seen) - 256) < 64 and len({k for k in seen if k[0] == "b"}) == 40
    )
