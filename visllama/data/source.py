"""What a source of records is; a user's own class derives from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import cast

import numpy as np

from visllama.data.items import ItemPlace, place_of_item
from visllama.data.record import check_record
from visllama.errors import ConfigError

_BLOCKS = 2**16
"""A source that names no shards is cut into at most so many blocks of records."""


class Source(ABC):
    """Where records come from: sized, random access.

    A record holds `key`; `image`, or `images` where there is not one; and one of `captions`, `questions` and
    `conversations`, as `visllama.data.record` has them. Each caption and each question is an item, a conversation is
    one item. It may hold `image_id`, the image's own name, a whole number or a text, by which predictions are then
    written, and `type`, a text by which captions are judged apart. An image is a PIL image, or the bytes of a JPEG, PNG
    or WebP file.

    A class of your own has `__len__` and `__getitem__`, and its `__init__` takes `split` ("train", "val" or "test")
    beside what its YAML says. It may raise `visllama.errors.BadRecord` for a record that it cannot read.

    A source of shards, whose counts are too many to hold in memory, has `shard_items` and `find_item` of its own in
    place of `item_counts` (`visllama.data.shards.ShardSource`).

    Attributes:
        item_counts: The number of items in each record. Training then shows each item exactly once a pass. A source
            without it counts one item a record: a record that holds several shows another one in each pass.
        shard_sizes: The number of records in each shard, where the records of one shard are best read together.
        kinds: The number of records of each kind of text, where it is known.
        fingerprint: A text that changes when the source holds something else.
        origin: A text that says where its records come from.
        is_remote: Whether its shards have to be fetched, at least some.
    """

    item_counts: Sequence[int] | None = None
    shard_sizes: Sequence[int] | None = None
    kinds: Mapping[str, int] = MappingProxyType({})
    fingerprint: str | None = None
    origin: str | None = None
    is_remote: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of records."""

    @abstractmethod
    def __getitem__(self, index: int) -> dict:
        """Return a record.

        Raises:
            BadRecord: If it cannot be read.
        """

    def read(self, index: int) -> dict:
        """Return a record, checked as one of a shard is: a class of your own has no need to check its records itself.

        Raises:
            BadRecord: If it cannot be read, or is no record.
        """
        return check_record(self[index])

    @cached_property
    def shard_items(self) -> Sequence[int]:
        """The number of items in each shard.

        The order of samples asks for it before there are loading processes: they share the counts that it makes.
        """
        sizes = shard_sizes(self)
        if self._item_ends is None:
            return sizes

        ends_of_records = np.concatenate([[0], self._item_ends])
        ends_of_shards = ends_of_records[np.cumsum(sizes)]
        # An array of whole numbers: of what a Sequence is, its readers need a length and places only.
        return cast("Sequence[int]", np.diff(ends_of_shards, prepend=0))

    def find_item(self, item: int) -> ItemPlace:
        """Return where an item lies: its record, and its place in that record."""
        if self._item_ends is None:
            # Without counts, a whole record is one item.
            return ItemPlace(item)
        return place_of_item(self._item_ends, item)

    @cached_property
    def _item_ends(self) -> np.ndarray | None:
        """The number of items up to the end of each record; None where they are not counted."""
        counts = item_counts(self)
        if counts is None:
            return None
        return np.cumsum(counts)


def count_items(source: Source) -> int:
    """Return the number of items in a source: its captions, questions and conversations."""
    return int(np.sum(source.shard_items, dtype=np.int64))


def shard_sizes(source: Source) -> Sequence[int]:
    """Return the number of records in each of a source's shards; one that names none is cut into blocks.

    Raises:
        ConfigError: If the source's own numbers do not add up to its records.
    """
    if source.shard_sizes is not None:
        num_records = sum(source.shard_sizes)
        if num_records != len(source):
            raise ConfigError(
                f"{type(source).__name__}.shard_sizes: makes {num_records} records, and the source has "
                f"{len(source)}: each record lies in one shard"
            )
        return source.shard_sizes

    block = -(-len(source) // _BLOCKS)  # rounded up, so that the blocks are not more than `_BLOCKS`
    num_blocks, rest = divmod(len(source), block)
    sizes = [block] * num_blocks
    if rest:
        sizes.append(rest)
    return sizes


def item_counts(source: Source) -> np.ndarray | None:
    """Return the number of items in each record of a source; None where the source does not count them.

    Raises:
        ConfigError: If the source's `item_counts` are not one whole number a record, or are all zero.
    """
    if source.item_counts is None:
        return None

    counts = np.asarray(source.item_counts)
    has_shape = counts.shape == (len(source),)
    are_counts = has_shape and counts.dtype.kind in "iu" and (counts >= 0).all()
    if not are_counts or not counts.any():
        raise ConfigError(
            f"{type(source).__name__}.item_counts: must be the number of items in each of its {len(source)} records, "
            f"one of them above zero, and is an array of {counts.dtype} of shape {counts.shape}"
        )
    return counts.astype(np.int64)
