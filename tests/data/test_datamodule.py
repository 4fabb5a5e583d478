import pytest

from tests.tiny import collator_of, maker_of, tiny_parts
from visllama.data.datamodule import CaptionData
from visllama.data.scenes.source import ScenesSource
from visllama.model.weights import build_model


@pytest.fixture(scope="module")
def model():
    return build_model(tiny_parts(), ("connector", "markers"))


class Ranks:
    """What the data asks of a Trainer."""

    def __init__(self, rank: int, num_ranks: int) -> None:
        self.global_rank, self.world_size = rank, num_ranks


def data_of(model, rank=0, num_ranks=1, num_workers=0, captions=1, num_steps=6):
    data = CaptionData(
        train=ScenesSource("train", 20, captions), val=ScenesSource("val", 11, 5), maker=maker_of(model), collator=collator_of(model, 3),
        global_batch_size=8, num_steps=num_steps, num_workers=num_workers, seed=1,
    )  # fmt: skip
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


def test_workers_change_nothing(model):
    assert keys(data_of(model, num_workers=2).train_dataloader()) == keys(data_of(model).train_dataloader())


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_validation_shows_each_record_once(model, num_ranks):
    seen = [
        key
        for rank in range(num_ranks)
        for step in keys(data_of(model, rank, num_ranks).val_dataloader())
        for key in step
    ]
    assert sorted(seen) == [f"val-{i:06d}" for i in range(11)]


def test_a_record_shows_each_of_its_captions_in_turn(model):
    """Five captions: in five passes (12.5 steps of 8 over 20 records) each image-caption pair is shown once."""
    data = data_of(model, captions=5, num_steps=13)
    dataset = data.train_dataloader().dataset
    shown = [(s.key, tuple(s.input_ids)) for s in (dataset[t] for t in range(100))]
    source = data.train
    expected = []
    for i in range(20):
        record = source[i]
        expected += [(record["key"], tuple(data.maker(record, c).input_ids)) for c in range(5)]
    assert sorted(shown) == sorted(expected)
