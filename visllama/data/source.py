"""What a source of records is; a user's own class is one as well."""

from __future__ import annotations

from typing import Protocol


class Source(Protocol):
    """Where records come from: sized, random access.

    A record holds `key`; `image`, or `images` where there is not one; and one of `captions`, `questions` and
    `conversations`, as `visllama.data.record` has them. Each caption and each question is an item, a conversation is
    one item. It may hold `image_id`, the image's own name, a whole number or a text, by which predictions are then
    written. An image is PIL, or the bytes of a JPEG, PNG or WebP file. The class of a source takes `split` ("train",
    "val" or "test") beside what its YAML says. It may raise `visllama.errors.BadRecord` for a record that it
    cannot read.

    A source may have:

    - `item_counts`: The number of items in each record, a sequence. Training then shows each item exactly once a pass.
      A source without it counts one item a record: a record that holds several shows another one in each pass.
    - `shard_sizes`: The number of records in each shard, where the records of one shard are best read together.
    - `kinds`: The number of records of each kind of text.
    - `fingerprint`: A text that changes when the source holds something else.
    - `origin`: A text that says where its records come from.

    A source of shards, whose counts are too many to hold in memory, has `shard_items` and `find_item` in place of
    `item_counts` (`visllama.data.shards.ShardSource`).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


def origin(source: Source) -> str | None:
    """Return where a source's records come from, in words, as far as it says so itself."""
    return getattr(source, "origin", None)
