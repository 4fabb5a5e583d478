"""The base class of sources, which hold records to train or judge on; a user's own source class derives from it."""

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
"""The largest number of blocks of records into which a source without `shard_sizes` is cut."""


class Source(ABC):
    """A collection of records: `len(source)` is their number, and `source.read(index)` returns one, in any order.

    A record is a dict that holds:

    - `key`, a text that names the record;
    - `image` (one image), `images` (a list), or neither. An image is a PIL image, or the bytes of a JPEG, PNG or WebP
      file;
    - one of `captions: [text]`, `questions: [{question, answers: [text]}]` and `conversations: [{from, value}]`. Each
      caption and each question is an item, a conversation is one item: items are what training shows one by one;
    - optionally `image_id`, the image's own name (a whole number or a text), under which predictions are written, and
      `type`, a text: captions of one type are also scored by themselves.

    A class of your own has `__len__` and `__getitem__`, and its `__init__` takes `split` ("train", "val" or "test")
    beside the arguments that its YAML names. It may raise `visllama.errors.BadRecord` for a record that it cannot read:
    training then goes on without that record.

    `visllama.data.shards.ShardSource`, whose records are too many to hold a count of each in memory, has `shard_items`
    and `find_item` of its own in place of `item_counts`.

    Attributes:
        item_counts: The number of items in each record; training then shows each item exactly once a pass. None (the
            default) counts each record as one item: of a record that holds several, each pass shows another one.
        shard_sizes: The number of records in each shard, in order, where records of one shard are best read together;
            None where there are no shards.
        kinds: The number of records of each kind of text ("captions", "questions", "conversations"); empty where it is
            not known.
        fingerprint: A text that changes when the source holds something else: a resume then needs
            data.allow_reorder=true. None where the source has none.
        origin: A text for people that says where its records come from; None where the source has none.
        is_remote: Whether at least some of its shards have to be downloaded.
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
        """Return the record at an index from 0; `read` checks it.

        Raises:
            BadRecord: If the record cannot be read.
        """

    def read(self, index: int) -> dict:
        """Return a checked copy of the record at an index; a class of your own need not check its records itself.

        In the copy, spaces around captions are stripped, and a greeting that opens a conversation is left out.

        Args:
            index: Number of the record, from 0.

        Raises:
            BadRecord: If the record cannot be read, or lacks something that a record must hold.
        """
        return check_record(self[index])

    @cached_property
    def shard_items(self) -> Sequence[int]:
        """The number of items in each shard, or in each block of records where the source has no `shard_sizes`.

        An item is a caption, question or conversation; without `item_counts`, each record counts as one. The counts are
        made at the first access and kept.

        Raises:
            ConfigError: If `shard_sizes` do not add up to the number of records, or `item_counts` are not valid.
        """
        sizes = shard_sizes(self)
        if self._item_ends is None:
            return sizes

        # With a 0 before them, entry n is the number of items in the first n records.
        ends_of_records = np.concatenate([[0], self._item_ends])
        ends_of_shards = ends_of_records[np.cumsum(sizes)]
        # An array of whole numbers: of what a Sequence is, its readers need a length and places only.
        return cast("Sequence[int]", np.diff(ends_of_shards, prepend=0))

    def find_item(self, item: int) -> ItemPlace:
        """Return the numbers of the record that holds an item, and of the item in that record.

        Args:
            item: Number of the item in this source, from 0. Without `item_counts`, it is the number of the record, and
                the item's number in the record is None.

        Raises:
            IndexError: If there are `item_counts`, and `item` is not less than their sum.
        """
        if self._item_ends is None:
            # Without counts, a whole record is one item.
            return ItemPlace(item)
        return place_of_item(self._item_ends, item)

    @cached_property
    def _item_ends(self) -> np.ndarray | None:
        """For each record, the number of items up to its end; None where the source has no `item_counts`."""
        counts = item_counts(self)
        if counts is None:
            return None
        return np.cumsum(counts)


def count_items(source: Source) -> int:
    """Return the number of items in a source: captions, questions and conversations.

    In a source without counts of its items, each record counts as one item.
    """
    return int(np.sum(source.shard_items, dtype=np.int64))


def shard_sizes(source: Source) -> Sequence[int]:
    """Return the number of records in each shard of a source that is not empty.

    A source without `shard_sizes` is cut into blocks of equal size, at most 65,536 of them; the last may be smaller.
    The numbers of records in these blocks are then returned.

    Raises:
        ConfigError: If the source's `shard_sizes` do not add up to its number of records.
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
    """Check the `item_counts` of a source, and return them as an array of int64; None where the source has none.

    Raises:
        ConfigError: If the counts are not one whole number from 0 for each record, or are all zero.
    """
    if source.item_counts is None:
        return None

    # A user's class may hold anything here: the counts are checked before the order of samples is made of them.
    counts = np.asarray(source.item_counts)
    has_shape = counts.shape == (len(source),)
    are_counts = has_shape and counts.dtype.kind in "iu" and (counts >= 0).all()

    if not are_counts or not counts.any():
        raise ConfigError(
            f"{type(source).__name__}.item_counts: must be the number of items in each of its {len(source)} records, "
            f"one of them above zero, and is an array of {counts.dtype} of shape {counts.shape}"
        )
    return counts.astype(np.int64)
