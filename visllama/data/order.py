"""The order of samples: which item of which source stands at position t. A pure function.

An item is one thing to learn: a caption, a question, a conversation. A record holds one or several, and its items are
neighbours: items are counted shard by shard, record by record (`visllama.data.items` finds the record of an item).
Each item comes exactly once a pass, however many its record holds.

Nothing here draws from a library's random stream, so an order stays what it is over versions and machines. Position
t = row * L + lane: `L` lanes, fixed by the global batch, run side by side through each source. A lane keeps to its own
part of a pass, and shuffles inside a window of a few shards: what is read next is near, whatever the number of ranks,
and a rank whose lanes are its own reads its own shards alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, overload

import numpy as np

from visllama.errors import ConfigError

ORDER_VERSION = 3
MOST_LANES = 64
FULL_SHUFFLE = 2**16
"""Sources of up to so many items are shuffled as a whole: for them nothing is far away."""
PATTERN_ROWS = 1024
"""A lane draws each source exactly its share of so many rows, period by period."""
# What a permutation is of: each purpose has a number of its own, so that no two draw alike.
_ITEMS = 1
_SHOWN = 2
_WINDOWS = 3
_MIX = 4
_MASK = 2**64 - 1


@overload
def mix64(x: int) -> int: ...


@overload
def mix64(x: np.ndarray) -> np.ndarray: ...


def mix64(x: np.ndarray | int) -> np.ndarray | int:
    """Return 64-bit integers scrambled, one to one, by the finaliser of splitmix64 (Steele et al. 2014)."""
    if isinstance(x, int):
        # The same arithmetic as below; Python's own integers are quicker for a single one.
        x = (x + 0x9E3779B97F4A7C15) & _MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        return x ^ (x >> 31)

    x = x + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x


def key(*parts: int) -> int:
    """Return one 64-bit key for several integers, of which the order counts too."""
    folded = 0
    # A seed may be negative: its lowest 64 bits are taken.
    for part in parts:
        folded = mix64(folded ^ (part & _MASK))
    return folded


def permutation(n: int, *parts: int) -> np.ndarray:
    """Return a permutation of `range(n)`: the order of its numbers' hashes.

    Args:
        n: How many numbers.
        parts: Which permutation: other parts make another one.
    """
    place = np.arange(n, dtype=np.uint64)
    hashes = mix64(place + np.uint64(key(*parts)))

    # Sorting hashes that carry their place in the lower bits is twice as fast as `argsort`; where two of them differ
    # in those bits alone, it is left to decide.
    bits = np.uint64(max(n - 1, 0).bit_length())
    packed = np.sort((hashes >> bits << bits) | place)
    if n > 1 and (np.diff(packed >> bits) == 0).any():
        return np.argsort(hashes)
    return (packed & np.uint64(2 ** int(bits) - 1)).astype(np.int64)


def item_shown(seed: int, record: int, number: int, num_items: int) -> int:
    """Return which of its items a record shows in a pass, where its source counts it as one item.

    In `num_items` passes each is shown once.

    Args:
        seed: The seed of the order.
        record: Number of the record.
        number: Number of the pass.
        num_items: Number of items that the record holds.
    """
    # A permutation of a few numbers, at which numpy is slow.
    start = key(seed, record, _SHOWN)
    shuffled = sorted(range(num_items), key=lambda item: mix64((item + start) & _MASK))
    return shuffled[number % num_items]


def num_lanes(global_batch_size: int) -> int:
    """Return the number of lanes: the largest divisor of the global batch size up to `MOST_LANES`."""
    divisors = [n for n in range(1, MOST_LANES + 1) if global_batch_size % n == 0]
    return max(divisors)


def rank_share(num_samples: int, rank: int, num_ranks: int) -> range:
    """Return which samples of a global batch are a rank's.

    They are contiguous. The ranks' shares hold all samples, none twice, and their sizes differ by one at most.
    """
    start = rank * num_samples // num_ranks
    end = (rank + 1) * num_samples // num_ranks
    return range(start, end)


class SourceOrder:
    """Passes over one source's items, each in its own order; in each pass every item comes exactly once.

    Args:
        sizes: Number of items in each shard.
        seed: Seed of the order; another seed makes another order.
        lanes: Number of lanes, which run side by side.
        window: Length of the stretch that a lane shuffles at once, in shards of average size.
        full_shuffle: A source of up to so many items is shuffled as a whole.
    """

    def __init__(
        self, sizes: Sequence[int], seed: int, lanes: int, window: int = 8, full_shuffle: int = FULL_SHUFFLE
    ) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.num_items = int(self.sizes.sum())
        self.seed = seed
        self.lanes = lanes
        self.is_whole = self.num_items <= max(2 * lanes, full_shuffle)
        self.window_rows = max(1, window * self.num_items // len(self.sizes))

        # Each permutation is kept while its rows come: every lane is in a window of its own, and a pass that ends
        # overlaps with the next one.
        self._whole = lru_cache(maxsize=2)(self._make_whole)
        self._line = lru_cache(maxsize=3)(self._make_line)
        self._window = lru_cache(maxsize=2 * lanes)(self._make_window)

    def locate(self, lane: int, row: int) -> tuple[int, int]:
        """Return what stands at a lane's row: the number of the item, and the number of the pass over the source."""
        if self.is_whole:
            number, place = divmod(row * self.lanes + lane, self.num_items)
            whole = self._whole(number)
            return int(whole[place]), number

        # The lane's part of a pass is cut into windows, each shuffled by itself.
        start, end = self._lane(lane)
        number, row_of_pass = divmod(row, end - start)
        window, row_of_window = divmod(row_of_pass, self.window_rows)
        shuffled = self._window(number, lane, window)
        place = start + window * self.window_rows + int(shuffled[row_of_window])

        # The place counts items in a line of shards that is shuffled too.
        shards, ends = self._line(number)
        j = int(np.searchsorted(ends, place, side="right"))
        shard = shards[j]
        item = self.starts[shard] + place - ends[j] + self.sizes[shard]
        return int(item), number

    def _lane(self, lane: int) -> tuple[int, int]:
        """Return the first place of a lane in a pass, and the end of its places."""
        start = lane * self.num_items // self.lanes
        end = (lane + 1) * self.num_items // self.lanes
        return start, end

    def _make_whole(self, number: int) -> np.ndarray:
        return permutation(self.num_items, self.seed, number, _ITEMS)

    def _make_line(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the shards in the order of a pass, and the number of items up to the end of each."""
        shards = permutation(len(self.sizes), self.seed, number, _ITEMS)
        return shards, np.cumsum(self.sizes[shards])

    def _make_window(self, number: int, lane: int, window: int) -> np.ndarray:
        start, end = self._lane(lane)
        # A lane's last window may be shorter.
        rows = min(self.window_rows, end - start - window * self.window_rows)
        shuffled = permutation(rows, self.seed, number, _WINDOWS, lane, window)
        return shuffled.astype(np.int32)


class Place(NamedTuple):
    """What stands at a position.

    Attributes:
        source: Number of the source.
        item: Number of the item in the source.
        number: Number of the pass over the source.
    """

    source: int
    item: int
    number: int


class Order:
    """The samples of a run, drawn from sources in exact shares.

    Args:
        sizes: Number of items in each shard, for each source.
        weights: Each source's share of the samples, to any scale.
        global_batch_size: Number of samples in a step, over all ranks.
        seed: Seed of the order; another seed makes another order.
        window: Length of the stretch that a lane shuffles at once, in shards of average size.
        full_shuffle: A source of up to so many items is shuffled as a whole.

    Raises:
        ConfigError: If a source's share is too small to be drawn.
    """

    def __init__(
        self,
        sizes: Mapping[str, Sequence[int]],
        weights: Mapping[str, float],
        global_batch_size: int,
        seed: int,
        window: int = 8,
        full_shuffle: int = FULL_SHUFFLE,
    ) -> None:
        self.names = list(sizes)
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.window = window

        # Positions run over the lanes first, so a step is `rows` rows of all lanes.
        self.lanes = num_lanes(global_batch_size)
        self.rows = global_batch_size // self.lanes

        self.shares = shares({name: weights[name] for name in self.names})
        self.sources = [SourceOrder(sizes[name], seed, self.lanes, window, full_shuffle) for name in self.names]
        self._pattern = lru_cache(maxsize=2 * self.lanes)(self._make_pattern)

    def locate(self, position: int) -> Place:
        """Return what stands at a position."""
        row, lane = divmod(position, self.lanes)
        if len(self.sources) == 1:
            item, number = self.sources[0].locate(lane, row)
            return Place(0, item, number)

        # The pattern tells which source the row draws, and how many rows of that source the lane has drawn before.
        period, row_of_period = divmod(row, PATTERN_ROWS)
        drawn, before = self._pattern(lane, period)
        source = int(drawn[row_of_period])
        row_of_source = period * self.shares[source] + int(before[row_of_period])
        item, number = self.sources[source].locate(lane, row_of_source)
        return Place(source, item, number)

    def _make_pattern(self, lane: int, period: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which source each row of a lane's period draws, and how often it was drawn before in it."""
        drawn = np.repeat(np.arange(len(self.shares), dtype=np.int16), self.shares)
        drawn = drawn[permutation(PATTERN_ROWS, self.seed, _MIX, lane, period)]

        before = np.empty(PATTERN_ROWS, np.int16)
        for source, share in enumerate(self.shares):
            before[drawn == source] = np.arange(share)
        return drawn, before

    def positions(self, step: int, rank: int, num_ranks: int) -> list[int]:
        """Return a rank's positions in a step: whole lanes as far as that goes, so that it keeps to their shards."""
        first = step * self.rows
        share = rank_share(self.global_batch_size, rank, num_ranks)
        positions = []
        for number in share:
            lane, row = divmod(number, self.rows)
            positions.append((first + row) * self.lanes + lane)
        return positions

    def fingerprint(self, manifests: Mapping[str, str]) -> dict[str, object]:
        """Return all that the order rests on, by name.

        Args:
            manifests: For each source, a text that changes with what the source holds.
        """
        return {
            "order_version": ORDER_VERSION,
            "seed": self.seed,
            "stage.global_batch_size": self.global_batch_size,
            "lanes": self.lanes,
            "data.window_shards": self.window,
            "mix": dict(zip(self.names, self.shares, strict=True)),
            "sources": dict(manifests),
        }


def shares(weights: Mapping[str, float]) -> list[int]:
    """Return how many of `PATTERN_ROWS` samples are drawn from each source.

    Each share is rounded down, and the sources with the largest remainders get one more.

    Raises:
        ConfigError: If a source would never be drawn.
    """
    total = sum(weights.values())
    exact = [weight / total * PATTERN_ROWS for weight in weights.values()]
    counts = [int(value) for value in exact]

    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    num_left = PATTERN_ROWS - sum(counts)
    for i in by_remainder[:num_left]:
        counts[i] += 1

    for name, count, value in zip(weights, counts, exact, strict=True):
        if count == 0:
            raise ConfigError(
                f"data.sources.{name}.weight={weights[name]}: {value / PATTERN_ROWS:.2g} of all samples is too little "
                f"to be drawn: at least 1/{PATTERN_ROWS} is, or leave the source out"
            )
    return counts
