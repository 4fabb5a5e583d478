"""Shards of made-up sizes."""

from __future__ import annotations

import numpy as np


def cut(num_records: int, num_shards: int, seed: int) -> list[int]:
    """Cut records into uneven shards, of which some may be empty."""
    places = np.sort(np.random.default_rng(seed).integers(0, num_records + 1, num_shards - 1))
    return np.diff([0, *places, num_records]).tolist()
