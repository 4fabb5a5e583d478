import pytest

from tests import tiny
from tests.tiny import maker_of, tiny_parts
from visllama.config import ConfigError
from visllama.data.faults import REASONS, BadRecord
from visllama.data.scenes.source import ScenesSource
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
    assert sorted(seen) == [f"val-{i:06d}" for i in range(11)]


def test_a_record_shows_each_of_its_captions_in_turn(model):
    """Five captions: in five passes (12.5 steps of 8 over 20 records) each image-caption pair is shown once."""
    data = data_of(model, captions=5, num_steps=13)
    samples = data.train_dataloader().samples
    shown = [(s.key, tuple(s.input_ids)) for s in (samples[t] for t in range(100))]
    source = data.train["scenes"]
    expected = []
    for i in range(20):
        record = source[i]
        expected += [(f"scenes/{record['key']}", tuple(data.makers["scenes"](record, c).input_ids)) for c in range(5)]
    assert sorted(shown) == sorted(expected)


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
    with pytest.raises(ConfigError, match=r"stage\.global_batch_size=4: the run has 8"):
        data_of(model, batch=4).train_dataloader().load_state_dict(state)
    accepted = data_of(model, seed=2, allow_reorder=True).train_dataloader()
    accepted.load_state_dict(state)
    assert accepted.step == 0


class Damaged:
    """Scenes of which some cannot be read."""

    def __init__(self, bad: dict[int, str], count: int = 20) -> None:
        self.scenes, self.bad = ScenesSource("train", count, 1), bad

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict:
        if index in self.bad:
            raise BadRecord(self.bad[index], f"record {index}")
        return self.scenes[index]


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
                assert was == f"scenes/train-{index:06d}" and fault == ("scenes", bad[index], f"record {index}")
        num_bad = sum(fault is not None for fault in step["faults"])
        assert step["num_samples"] == 8 and sum(len(b["input_ids"]) for b in step["micro_batches"]) == 8
        assert sum(len(b["pixel_values"]) for b in step["micro_batches"]) >= 8 - num_bad
        assert (step["num_targets"] < expected["num_targets"]) == bool(num_bad)
    assert masked == sum(key in {f"scenes/train-{i:06d}" for i in bad} for step in whole for key in step["keys"])


def test_a_sample_with_nothing_to_learn_is_counted(model):
    data = data_of(model)
    data.makers = {"scenes": maker_of(model, prompt="a b c d e f g h", max_text_tokens=3)}
    step = next(iter(data.train_dataloader()))
    assert {fault[1] for fault in step["faults"]} == {"no_target"} and step["num_targets"] == 0


def test_sources_are_mixed_by_their_weights(model):
    train = {"a": ScenesSource("train", 9, 1), "b": ScenesSource("val", 40, 1)}
    seen = [key for step in keys(data_of(model, train=train, num_steps=64).train_dataloader()) for key in step]
    assert (
        abs(sum(key.startswith("a/train") for key in seen) - 256) < 64 and len({k for k in seen if k[0] == "b"}) == 40
    )
