"""Which records of a source are held out of training, to be validated and judged on.

The choice is a pure function of the shards' contents, as the manifest counts them: it is the same on every rank and
machine, for every seed, and for `evaluate`. It costs at most `MOST_SHARDS` indexes, however many shards there are.
"""

from __future__ import annotations

import numpy as np

from visllama.data.order import mix64, permutation
from visllama.data.shards.manifest import Manifest
from visllama.errors import ConfigError

MOST_RECORDS = 10_000
"""Records that are held out at most: more would make a validation slower, and its figures hardly surer."""
MOST_SHARDS = 64
"""Shards at most in which held-out records lie: the index of each has to be read."""


def held_out_rows(manifest: Manifest, fraction: float) -> dict[int, np.ndarray]:
    """Return the rows that are held out of each shard, sorted; a shard that is trained on as a whole is not named.

    Args:
        manifest: The shards; where none holds a record, none is held out.
        fraction: The share of all records that is wanted. At least one record is held out, and no more than
            `MOST_RECORDS`, or than `MOST_SHARDS` shards hold.

    Raises:
        ConfigError: If no record would be left to train on.
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

    held_out = {}
    for number in np.unique(shard_numbers):
        shard = int(shards[number])
        held_out[shard] = rows[shard_numbers == number]
    return held_out


def _choose_shards(manifest: Manifest) -> np.ndarray:
    """Return the shards whose contents hash lowest, wherever they stand in the manifest."""
    shards = np.flatnonzero(manifest.num_records)
    hashes = mix64(manifest.crc[shards].astype(np.uint64))
    by_hash = np.argsort(hashes, kind="stable")
    return shards[by_hash[:MOST_SHARDS]]
