"""Compute the order of samples: which item of which source stands at position t. No state and no file is read.

An item is one thing to learn: a caption, a question or a conversation. A record holds one or several. Items are counted
shard by shard, record by record (`visllama.data.items` finds the record of an item). In a pass over a source, each item
comes exactly once, however many its record holds.

Nothing here draws from a library's random stream, so an order stays what it is over versions and machines.

The positions of a run fill a table row by row: position t = row * L + lane, in a table of `L` columns, the *lanes*. `L`
depends on the global batch size alone. Each lane goes through its own part of each source in every pass, and shuffles
inside a *window* of a few shards at a time: what is read next is near, whatever the number of ranks, and a rank that
has whole lanes reads the shards of those lanes alone. A source of few items is shuffled as a whole instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, overload

import numpy as np

from visllama.errors import ConfigError

ORDER_VERSION = 3
"""Stored in checkpoints; to be raised with every change here that changes which item stands at a position."""
MOST_LANES = 64
"""The largest number of lanes."""
FULL_SHUFFLE = 2**16
"""Sources of at most this many items are shuffled as a whole, and not window by window: in them nothing is far away."""
PATTERN_ROWS = 1024
"""In every period of this many rows, a lane draws each source exactly as often as its share says."""
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
    """Return the hash of a 64-bit integer, or of each in an array, by splitmix64's finaliser (Steele et al. 2014).

    Different integers have different hashes.

    Args:
        x: An integer from 0 to 2**64 - 1, or an array of uint64, which is not changed.
    """
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
    """Return one 64-bit hash of several integers; the same integers in another order have another hash.

    Args:
        parts: The integers, which may be negative; only the lowest 64 bits of each count. For none, 0 is returned.
    """
    folded = 0
    # A seed may be negative: its lowest 64 bits are taken.
    for part in parts:
        folded = mix64(folded ^ (part & _MASK))
    return folded


def permutation(n: int, *parts: int) -> np.ndarray:
    """Return the numbers 0 to n - 1 (int64) in a random order, which is always the same for the same arguments.

    Args:
        n: How many numbers; 0 returns an empty array.
        parts: Integers that serve as the seed: other integers make another order.
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
    """Return the number of the item that a record shows in one pass, for a source that counts each record as one item.

    In any `num_items` passes that follow each other, each item is shown once.

    Args:
        seed: The seed of the order.
        record: Number of the record in its source.
        number: Number of the pass over the source, from 0.
        num_items: Number of items that the record holds, at least 1.
    """
    # A permutation of a few numbers, at which numpy is slow.
    start = key(seed, record, _SHOWN)
    shuffled = sorted(range(num_items), key=lambda item: mix64((item + start) & _MASK))
    return shuffled[number % num_items]


def num_lanes(global_batch_size: int) -> int:
    """Return the number of lanes for a global batch size: its largest divisor that is at most `MOST_LANES`.

    Lanes are the columns of the table that the positions of a run fill row by row (see this module's text).

    Args:
        global_batch_size: Number of samples in a step, over all ranks; at least 1.
    """
    divisors = [n for n in range(1, MOST_LANES + 1) if global_batch_size % n == 0]
    return max(divisors)


def rank_share(num_samples: int, rank: int, num_ranks: int) -> range:
    """Return the numbers of the samples that one rank takes of `num_samples`, as a contiguous range.

    The shares of all ranks hold each sample once, and their sizes differ by one at most. A share may be empty.

    Args:
        num_samples: Number of samples to be shared.
        rank: Number of the rank, from 0.
        num_ranks: Number of ranks.
    """
    start = rank * num_samples // num_ranks
    end = (rank + 1) * num_samples // num_ranks
    return range(start, end)


class SourceOrder:
    """The order of one source's items over many passes; in each pass every item comes exactly once.

    Args:
        sizes: Number of items in each shard; at least one item in all.
        seed: Seed of the order; another seed makes another order.
        lanes: Number of lanes, among which the samples of a run are dealt out: position t belongs to lane t modulo
            `lanes`.
        window: A lane shuffles as many items at once as this many shards of average size hold.
        full_shuffle: A source of at most this many items is shuffled as a whole, and not window by window.
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
        """Return the number of the item that a lane draws next, and the number of the pass over the source, from 0.

        Args:
            lane: Number of the lane, from 0.
            row: Number of items that this lane has drawn from this source before, in all passes.
        """
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
        """Return the first of the places of a pass that a lane goes through, and the one behind the last."""
        start = lane * self.num_items // self.lanes
        end = (lane + 1) * self.num_items // self.lanes
        return start, end

    def _make_whole(self, number: int) -> np.ndarray:
        return permutation(self.num_items, self.seed, number, _ITEMS)

    def _make_line(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the shards in the order of a pass, and the number of items up to the end of each."""
        shards = permutation(len(self.sizes), self.seed, number, _ITEMS)
        return shards, np.cumsum(self.sizes[shards])

    def _make_window(self, number: int, lane: int, window: int) -> np.ndarray:
        start, end = self._lane(lane)
        # A lane's last window may be shorter.
        rows = min(self.window_rows, end - start - window * self.window_rows)
        shuffled = permutation(rows, self.seed, number, _WINDOWS, lane, window)
        return shuffled.astype(np.int32)


class Place(NamedTuple):
    """The item that stands at a position of a run.

    Attributes:
        source: Number of the source, from 0, in `Order.names`.
        item: Number of the item in the source, from 0.
        number: Number of the pass over the source, from 0.
    """

    source: int
    item: int
    number: int


class Order:
    """The order of the samples of a run, drawn from several sources in exact shares.

    Args:
        sizes: For each source, by name, the number of items in each of its shards.
        weights: For each name in `sizes`, the source's share of the samples, to any scale: 2 and 6 are 0.25 and 0.75.
        global_batch_size: Number of samples in a step, over all ranks.
        seed: Seed of the order; another seed makes another order.
        window: A lane (see `lanes`) shuffles as many items at once as this many shards of average size hold.
        full_shuffle: A source of at most this many items is shuffled as a whole, and not window by window.

    Attributes:
        names: The names of the sources, in the order of their numbers.
        lanes: Number of lanes, the columns of a table that the positions of the run fill row by row.
        rows: Number of rows of that table in a step.
        shares: For each source, the number of samples that each lane draws from it in every period of `PATTERN_ROWS`
            rows.

    Raises:
        ConfigError: If a source's share is less than about one of `PATTERN_ROWS`, so that it would never be drawn.
        KeyError: If a source has no weight.
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
        """Return the source, the item and the pass over the source at a position of the run; positions count from 0."""
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
        """Return for each row of a lane's period the number of its source, and how often that was drawn before."""
        drawn = np.repeat(np.arange(len(self.shares), dtype=np.int16), self.shares)
        drawn = drawn[permutation(PATTERN_ROWS, self.seed, _MIX, lane, period)]

        before = np.empty(PATTERN_ROWS, np.int16)
        for source, share in enumerate(self.shares):
            before[drawn == source] = np.arange(share)
        return drawn, before

    def positions(self, step: int, rank: int, num_ranks: int) -> list[int]:
        """Return the positions of the samples that one rank loads in one step.

        Position t belongs to lane t modulo `lanes`. A rank takes all samples of as many lanes as possible, since each
        lane reads its own shards. The positions are listed lane by lane, so they are not sorted; a rank may have none.

        Args:
            step: Number of the step, from 0.
            rank: Number of the rank, from 0.
            num_ranks: Number of ranks.
        """
        first = step * self.rows
        share = rank_share(self.global_batch_size, rank, num_ranks)

        # The samples of a step are numbered lane by lane, so that a rank's contiguous share is made of whole lanes.
        positions = []
        for number in share:
            lane, row = divmod(number, self.rows)
            positions.append((first + row) * self.lanes + lane)

        return positions

    def fingerprint(self, manifests: Mapping[str, str]) -> dict[str, object]:
        """Return all inputs that this order is computed from, by name; `check_order` compares them at a resume.

        Args:
            manifests: For each source, by name, a text that changes when the source holds something else.
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
    """Return how many of every `PATTERN_ROWS` samples are drawn from each source, in the order of `weights`.

    Each number is rounded down, and the sources with the largest remainders get one more: the sum is `PATTERN_ROWS`.

    Args:
        weights: Each source's share by its name, to any scale: 2 and 6 are 0.25 and 0.75.

    Raises:
        ConfigError: If the number of samples from a source comes out as 0, so that it would never be drawn.
        ZeroDivisionError: If the weights add up to 0.
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
