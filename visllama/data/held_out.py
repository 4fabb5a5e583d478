"""Choose the records of a source that are held out of training, to validate and judge on.

The choice depends only on the counts and checksums of the shards in the manifest: it is the same on every rank and
machine, for every seed, and for `evaluate`. The indexes of at most `MOST_SHARDS` shards have to be read for it.
"""

from __future__ import annotations

import numpy as np

from visllama.data.order import mix64, permutation
from visllama.data.shards.manifest import Manifest
from visllama.errors import ConfigError

MOST_RECORDS = 10_000
"""The largest number of records that are held out: more would make a validation slower, its figures hardly surer."""
MOST_SHARDS = 64
"""The largest number of shards in which held-out records lie: the index of each has to be read."""


def held_out_rows(manifest: Manifest, fraction: float) -> dict[int, np.ndarray]:
    """Return which records of each shard are held out of training. No file is read.

    Args:
        manifest: The shards, with the number of records and the checksum of each.
        fraction: The share of all records that is to be held out, from 0 to 1. At least one record is held out, and at
            most `MOST_RECORDS`; they all lie in at most `MOST_SHARDS` shards.

    Returns:
        For the number of each shard that holds out records, the sorted numbers of those records in the shard. Empty
        where the manifest has no record.

    Raises:
        ConfigError: If all records would be held out, and none would be left to train on.
    """
    num_records = int(manifest.num_records.sum())
    if num_records == 0:
        return {}

    num_wanted = min(max(1, round(fraction * num_records)), MOST_RECORDS)
    if num_wanted == num_records:
        noun = "record" if num_records == 1 else "records"
        raise ConfigError(
            f"val_fraction={fraction} holds out {num_wanted} of {num_records} {noun}, and "
            f"none is left to train on: give other tars as val_path=FILE, or train on all without validation by "
            f"val_fraction=null"
        )

    shards = _choose_shards(manifest)
    sizes = manifest.num_records[shards]
    ends = np.cumsum(sizes)

    # The chosen shards' records stand in one line, and the first places of its permutation are held out.
    line = permutation(int(ends[-1]), *manifest.crc[shards].tolist())
    places = np.sort(line[:num_wanted])
    shard_numbers = np.searchsorted(ends, places, side="right")
    starts = ends - sizes
    rows = places - starts[shard_numbers]

    # The places are sorted, so the rows of each shard are sorted too.
    held_out = {}
    for number in np.unique(shard_numbers):
        shard = int(shards[number])
        held_out[shard] = rows[shard_numbers == number]
    return held_out


def _choose_shards(manifest: Manifest) -> np.ndarray:
    """Return the numbers of at most `MOST_SHARDS` shards with records: those whose checksums have the lowest hashes."""
    # By contents and not by place, so that shards in another order or folder hold out the same records.
    shards = np.flatnonzero(manifest.num_records)
    hashes = mix64(manifest.crc[shards].astype(np.uint64))
    by_hash = np.argsort(hashes, kind="stable")
    return shards[by_hash[:MOST_SHARDS]]
