"""What a source of records is; a user's own class derives from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

import numpy as np

from visllama.data.items import ItemPlace, item_counts, place_of_item, shard_sizes


class Source(ABC):
    """Where records come from: sized, random access.

    A record holds `key`; `image`, or `images` where there is not one; and one of `captions`, `questions` and
    `conversations`, as `visllama.data.record` has them. Each caption and each question is an item, a conversation is
    one item. It may hold `image_id`, the image's own name, a whole number or a text, by which predictions are then
    written. An image is PIL, or the bytes of a JPEG, PNG or WebP file.

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
        return np.diff(ends_of_shards, prepend=0)

    def find_item(self, item: int) -> ItemPlace:
        """Return where an item lies: its record, and its place in that record."""
        if self._item_ends is None:
            return ItemPlace(item)  # an item is a whole record
        return place_of_item(self._item_ends, item)

    @cached_property
    def _item_ends(self) -> np.ndarray | None:
        """The number of items up to the end of each record; None where they are not counted."""
        counts = item_counts(self)
        return None if counts is None else np.cumsum(counts)
