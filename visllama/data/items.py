"""How the items of a source lie in its records and shards.

An item is one thing to learn: a caption, a question, a conversation. Items are numbered record by record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from visllama.errors import ConfigError

if TYPE_CHECKING:
    from visllama.data.source import Source

_BLOCKS = 2**16
"""A source that names no shards is cut into at most so many blocks of records."""


class ItemPlace(NamedTuple):
    """Where an item lies in its source.

    Attributes:
        record: Number of the record.
        index: Number of the item in that record; None where the source does not count items.
        num_items: Number of items that the source counts in that record; None likewise.
    """

    record: int
    index: int | None = None
    num_items: int | None = None


def count_items(source: Source) -> int:
    """Return the number of items in a source: its captions, questions and conversations."""
    return int(np.sum(source.shard_items, dtype=np.int64))


def place_of_item(ends: np.ndarray, item: int) -> ItemPlace:
    """Find an item among records; `ends` is the number of items up to the end of each record."""
    record = int(np.searchsorted(ends, item, side="right"))
    start = int(ends[record - 1]) if record else 0
    return ItemPlace(record, item - start, int(ends[record]) - start)


def shard_sizes(source: Source) -> Sequence[int]:
    """Return the number of records in each of a source's shards; one that names none is cut into blocks.

    Raises:
        ConfigError: If the source's own numbers do not add up to its records.
    """
    if source.shard_sizes is not None:
        if sum(source.shard_sizes) != len(source):
            raise ConfigError(
                f"{type(source).__name__}.shard_sizes: makes {sum(source.shard_sizes)} records, and the source has "
                f"{len(source)}: each record lies in one shard"
            )
        return source.shard_sizes
    block = -(-len(source) // _BLOCKS)
    whole, rest = divmod(len(source), block)
    return [block] * whole + [rest] * bool(rest)


def item_counts(source: Source) -> np.ndarray | None:
    """Return the number of items in each record of a source; None where the source does not count them.

    Raises:
        ConfigError: If what the source has as `item_counts` cannot be that.
    """
    if source.item_counts is None:
        return None
    counts = np.asarray(source.item_counts)
    is_count = counts.shape == (len(source),) and counts.dtype.kind in "iu" and (counts >= 0).all()
    if not is_count or not counts.any():
        raise ConfigError(
            f"{type(source).__name__}.item_counts: must be the number of items in each of its {len(source)} records, "
            f"one of them above zero, and is an array of {counts.dtype} of shape {counts.shape}"
        )
    return counts.astype(np.int64)
