"""What the order costs where there is much of it: run in a process of its own, whose memory is then its alone."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy as np

from visllama.data.order import Order
from visllama.data.shards.manifest import MANIFEST, Manifest

GLOBAL_BATCH_SIZE = 1024
_MEAN_RECORDS = 10_000
_STEPS_AFTER = 20


def write_manifest(folder: Path, num_shards: int, seed: int) -> None:
    """Write the manifest of shards that are nowhere: about 10,000 records each, as img2dataset makes them."""
    rng = np.random.default_rng(seed)
    records = rng.integers(_MEAN_RECORDS * 4 // 5, _MEAN_RECORDS * 6 // 5, num_shards)
    names = [f"{number:05d}.tar" for number in range(num_shards)]
    crc = rng.integers(0, 2**32, num_shards)
    Manifest(str(folder), names, 30_000 * records, records, records, crc, {"captions": int(records.sum())}).save()


def measure_order(folder: Path, seed: int) -> dict[str, float]:
    """Start from a manifest, jump to far positions, and go on from there; gives CPU seconds, and megabytes."""
    memory = _most_memory_mb()
    began = time.process_time()
    manifest = Manifest.parse(str(folder), (folder / MANIFEST).read_bytes())
    order = Order({"shards": manifest.num_pairs}, {"shards": 1.0}, GLOBAL_BATCH_SIZE, seed)
    start = time.process_time() - began
    passes = int(manifest.num_pairs.sum()) / GLOBAL_BATCH_SIZE
    # Each in another pass, so that nothing of it is there yet.
    jump = _locate(order, range(int(2.7 * passes), int(2.7 * passes) + 1), 0, 1)
    far = int(5.3 * passes)
    jump_of_8 = _locate(order, range(far, far + 1), 3, 8)
    after = _locate(order, range(far + 1, far + 1 + 8 * _STEPS_AFTER), 3, 8) / (_STEPS_AFTER * GLOBAL_BATCH_SIZE)
    memory = _most_memory_mb() - memory
    return {"start": start, "jump": jump, "jump_of_8": jump_of_8, "after": after, "memory_mb": memory}


def _locate(order: Order, steps: range, rank: int, num_ranks: int) -> float:
    began = time.process_time()
    for step in steps:
        for position in order.positions(step, rank, num_ranks):
            order.locate(position)
    return time.process_time() - began


def _most_memory_mb() -> float:
    """Return the most memory that this process has held; on Linux `ru_maxrss` begins with that of its parent."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
