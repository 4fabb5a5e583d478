"""Measure what the order of many shards costs, in a process of its own, whose memory is then that of the order."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from visllama.data.order import Order
from visllama.data.shards.manifest import MANIFEST, Manifest

GLOBAL_BATCH_SIZE = 1024
_MEAN_RECORDS = 10_000
_STEPS_AFTER = 20


def write_manifest(folder: Path, num_shards: int, seed: int) -> None:
    """Write the manifest of shards that do not exist: about 10,000 records each, as img2dataset makes them."""
    rng = np.random.default_rng(seed)
    records = rng.integers(_MEAN_RECORDS * 4 // 5, _MEAN_RECORDS * 6 // 5, num_shards)
    names = [f"{number:05d}.tar" for number in range(num_shards)]
    crc = rng.integers(0, 2**32, num_shards)
    manifest = Manifest(
        folder=str(folder),
        names=names,
        bytes=30_000 * records,
        num_records=records,
        num_pairs=records,
        crc=crc,
        kinds={"captions": int(records.sum())},
    )
    manifest.save()


def measure_order(folder: Path, seed: int) -> dict[str, float]:
    """Start from a manifest, jump to far positions, and go on from there.

    Returns:
        The CPU seconds of the `start`, of a `jump` of the only rank, of a `jump_of_8` ranks in one of them, and of a
        sample `after` it; and `memory_mb`, the memory of all that in 2^20 bytes.
    """
    memory_before_mb = _most_memory_mb()
    started = time.process_time()
    manifest = Manifest.parse(str(folder), (folder / MANIFEST).read_bytes())
    num_pairs = cast(Sequence[int], manifest.num_pairs)
    order = Order({"shards": num_pairs}, {"shards": 1.0}, GLOBAL_BATCH_SIZE, seed)
    start_s = time.process_time() - started

    # Each jump leads to another pass over the data, so that nothing of it is in memory yet.
    steps_a_pass = int(manifest.num_pairs.sum()) / GLOBAL_BATCH_SIZE
    first_step = int(2.7 * steps_a_pass)
    jump_s = _locate(order, range(first_step, first_step + 1), 0, 1)
    far_step = int(5.3 * steps_a_pass)
    jump_of_8_s = _locate(order, range(far_step, far_step + 1), 3, 8)

    # In 8 steps one of 8 ranks reads as many samples as there are in a global batch.
    next_steps = range(far_step + 1, far_step + 1 + 8 * _STEPS_AFTER)
    after_s = _locate(order, next_steps, 3, 8) / (_STEPS_AFTER * GLOBAL_BATCH_SIZE)
    memory_mb = _most_memory_mb() - memory_before_mb
    return {
        "start": start_s,
        "jump": jump_s,
        "jump_of_8": jump_of_8_s,
        "after": after_s,
        "memory_mb": memory_mb,
    }


def _locate(order: Order, steps: range, rank: int, num_ranks: int) -> float:
    """Return the CPU seconds in which a rank finds the samples of some steps."""
    started = time.process_time()
    for step in steps:
        for position in order.positions(step, rank, num_ranks):
            order.locate(position)
    return time.process_time() - started


def _most_memory_mb() -> float:
    """Return the most memory that this process has held, in 2^20 bytes."""
    # On Linux `ru_maxrss` begins with the memory of the parent.
    status = Path("/proc/self/status")
    if status.is_file():
        _, _, rest = status.read_text().partition("VmHWM:")
        return int(rest.split()[0]) / 2**10

    # It is in bytes on macOS, and in kilobytes elsewhere.
    most_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most_memory / (2**20 if sys.platform == "darwin" else 2**10)
