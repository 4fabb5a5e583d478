"""The order of samples: which record, and which of its captions, stands at position t. A pure function.

Nothing here draws from a library's random stream, so an order stays what it is over versions and machines.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

ORDER_VERSION = 1
_RECORDS, _CAPTIONS = 1, 2


def mix64(x: np.ndarray | int) -> np.ndarray:
    """Scramble 64-bit integers (splitmix64's finaliser), one to one."""
    with np.errstate(over="ignore"):
        x = np.asarray(x, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def key(*parts: int) -> np.uint64:
    """Fold integers into one key."""
    k = np.uint64(0)
    for part in parts:
        k = mix64(k ^ np.uint64(part % 2**64))[()]
    return k


def permutation(n: int, *parts: int) -> np.ndarray:
    """Permute `range(n)`; `parts` name which permutation."""
    with np.errstate(over="ignore"):
        return np.argsort(mix64(np.arange(n, dtype=np.uint64) + key(*parts)), kind="stable")


class RecordOrder:
    """Passes over the records, each pass in its own order; position t stands in pass `t // num_records`.

    Args:
        num_records: Records of the source.
        seed: Another seed is another order.
    """

    def __init__(self, num_records: int, seed: int) -> None:
        self.num_records, self.seed = num_records, seed
        self._of_pass = lru_cache(maxsize=2)(lambda number: permutation(num_records, seed, number, _RECORDS))

    def locate(self, position: int) -> tuple[int, int]:
        """Give (record, pass) at a position."""
        number, row = divmod(position, self.num_records)
        return int(self._of_pass(number)[row]), number

    def caption(self, record: int, number: int, num_captions: int) -> int:
        """Choose which caption a record shows in a pass: in `num_captions` passes each is shown once."""
        return int(permutation(num_captions, self.seed, record, _CAPTIONS)[number % num_captions])


def rank_share(num_samples: int, rank: int, num_ranks: int) -> range:
    """Give which samples of a global batch are a rank's: contiguous, together all, none twice, sizes within one."""
    return range(rank * num_samples // num_ranks, (rank + 1) * num_samples // num_ranks)
