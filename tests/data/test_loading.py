"""Steps out of loading processes: the same as without, in few open files; what goes wrong there ends the rank with its reason."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from tests.support.small_disk import run_on_small_disk
from visllama.data.collate import Collator
from visllama.data.loading import Loader, pack, unpack
from visllama.data.samples import Sample
from visllama.errors import ConfigError
from visllama.text.tokens import IGNORE_INDEX

COLLATOR = Collator(pad_token_id=0, num_image_tokens=2, size_px=4, micro_batch_size=2)


def sample(length: int) -> Sample:
    return Sample(f"{length}", [1] * length, [IGNORE_INDEX] * length, [])


class Samples(Dataset):
    """Texts of different lengths; `before` is done where one is asked for."""

    def __init__(self, before=lambda: None) -> None:
        self.before = before

    def __getitem__(self, position: int) -> Sample:
        self.before()
        return sample(1 + position % 7)


def batches(num_steps: int, size: int) -> list[list[int]]:
    return [list(range(step * size, (step + 1) * size)) for step in range(num_steps)]


def assert_same(a, b) -> None:
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for name in a:
            assert_same(a[name], b[name])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for ours, theirs in zip(a, b, strict=True):
            assert_same(ours, theirs)
    else:
        assert a == b


def test_what_is_packed_is_unpacked_as_it_was():
    step = COLLATOR.step([sample(length) for length in (3, 1, 4, 1, 5)])
    assert_same(unpack(pack(step)), step)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_loading_processes_change_nothing(num_workers):
    loaders = [Loader(Samples(), batches(4, 7), COLLATOR, count) for count in (0, num_workers)]
    alone, beside = (list(loader) for loader in loaders)
    assert len(loaders[0]) == 4
    assert_same(beside, alone)


def test_few_files_stay_open_however_many_micro_batches_a_step_has():
    """torch's own way keeps one open for each tensor of each step that is held: 3 x 65 of these."""
    before = len(os.listdir("/proc/self/fd"))
    steps = iter(Loader(Samples(), batches(3, 128), COLLATOR, 1))
    held = [next(steps)]
    opened = len(os.listdir("/proc/self/fd"))
    held += steps
    assert len(held) == 3 and opened - before < 40, f"{opened - before} files"


def no_more_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse() -> None:
    raise ConfigError("shards: a.tar: cannot be read")


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (
            no_more_files,
            r"data.num_workers=1: a step of 0.0 MiB .*Too many open files.*raise `ulimit -n` \(it is \d+\)",
        ),
        (end, r"data.num_workers: a loading process has ended.*lower data.num_workers"),
        (refuse, r"^shards: a\.tar: cannot be read$"),
    ],
)
def test_what_goes_wrong_in_a_loading_process_ends_the_rank_with_its_reason(before, message):
    with pytest.raises(ConfigError, match=message):
        list(Loader(Samples(before), batches(3, 4), COLLATOR, 1))


@pytest.mark.parametrize("before", [end, refuse])
def test_no_loading_process_outlives_an_error(before):
    """Left to the garbage collector they may cost ten seconds, in a thread that has other things to do."""
    gc.disable()
    try:
        with pytest.raises(ConfigError) as caught:
            list(Loader(Samples(before), batches(3, 4), COLLATOR, 2))
        assert not multiprocessing.active_children(), caught
    finally:
        gc.enable()


def test_shared_memory_that_is_too_small():
    script = """
from tests.data.test_loading import COLLATOR, Samples, batches
from visllama.errors import ConfigError
from visllama.data.loading import Loader
try:
    list(Loader(Samples(), batches(2, 8192), COLLATOR, 2))
except ConfigError as error:
    print(error)
"""
    ended = run_on_small_disk(script, Path("/dev/shm"), "100k")
    assert "a step of 0.7 MiB cannot be handed over by a loading process" in ended.stdout, ended.stderr
    # Between the two stands torch's own reason, which before 2.12 does not name the disk.
    assert "): make /dev/shm larger" in ended.stdout and "Error" not in ended.stderr
