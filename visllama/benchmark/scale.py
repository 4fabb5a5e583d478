"""Measure what the order of samples costs (`visllama.data.order`) where a dataset has very many shards.

`measure_order` is meant to run in a process of its own, so that the memory it measures is that of the order.
"""

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
"""The number of samples of a step, over all ranks."""
_MEAN_RECORDS = 10_000
_STEPS_AFTER = 20


def write_manifest(folder: Path, num_shards: int, seed: int) -> None:
    """Write the `manifest.json` of shards that do not exist, with made-up sizes: 8,000 to 12,000 records in each.

    Args:
        folder: The folder that the manifest is written to; it has to be there.
        num_shards: The number of shards that the manifest names.
        seed: The seed of the sizes.
    """
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
    """Measure what it costs to set up the order of a manifest's samples, and to find samples far behind its beginning.

    Args:
        folder: The folder that holds the manifest, for example one of `write_manifest`.
        seed: The seed of the order.

    Returns:
        CPU seconds under four keys: `start` (read the manifest and set up the order), `jump` (find the samples of a far
        step in a run of one rank), `jump_of_8` (find one rank's samples of a far step in a run of 8 ranks), and `after`
        (find one sample of the steps that follow). Under `memory_mb`, by how much the peak of the process's memory has
        grown during the measurement, in 2^20 bytes.
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
    """Return the CPU seconds in which one of `num_ranks` ranks finds its samples of some steps."""
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
