"""Which record goes into which shard: fixed before anything is written, by the order and the sizes of the files alone.

So any number of processes, and any interruption, come to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from rich.progress import track

from visllama.data.record import read_text
from visllama.errors import BadRecord, ConfigError
from visllama.prepare.raw import ImageFolder, RawRecord, RawSplit, Skipped

_BLOCK = 512
"""A tar consists of blocks of so many bytes."""
_THREADS = 16
"""A network file system answers many questions at once, each slowly."""
_CHUNK = 64
"""Each thread takes so many records at a time."""
_MOST_SHOWN = 5


class Placed(NamedTuple):
    """A record whose image files are there.

    Attributes:
        record: The record.
        files: The path and the size in bytes of each image.
    """

    record: RawRecord
    files: tuple[tuple[str, int], ...]


class _Measured(NamedTuple):
    """A placed record, the bytes that its members take up in a tar, and the content of its `KEY.json`."""

    placed: Placed
    num_bytes: int
    text: bytes


@dataclass(frozen=True)
class SplitLayout:
    """A split's shards before they are written.

    Attributes:
        shards: The records of each shard.
        shard_bytes: The most bytes that the members of each shard take up.
        skipped: The records that are left out so far.
        sha256: A hash of all that determines the shards' bytes, except for the content of the images.
    """

    shards: list[list[Placed]]
    shard_bytes: list[int]
    skipped: list[Skipped]
    sha256: str

    @property
    def num_records(self) -> int:
        """The number of records that were there, those that are left out included."""
        num_placed = sum(len(records) for records in self.shards)
        return num_placed + len(self.skipped)


def encode(text: dict) -> bytes:
    """Return the content of `KEY.json`."""
    return json.dumps(text, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def lay_out(split: RawSplit, images: ImageFolder, shard_bytes: float) -> SplitLayout:
    """Look for each record's files, and share the records out in their order.

    Args:
        split: The records.
        images: The folder of their images.
        shard_bytes: The most bytes of a shard; a record that alone has more is a shard of its own.
    """

    def place_all(records: list[RawRecord]) -> list[_Measured | Skipped]:
        return [_place(record, images) for record in records]

    shards: list[list[Placed]] = []
    totals: list[int] = []
    skipped = list(split.skipped)
    digest = hashlib.sha256()

    num_records = len(split.records)
    chunks = [split.records[i : i + _CHUNK] for i in range(0, num_records, _CHUNK)]
    is_quiet = not sys.stdout.isatty()
    with ThreadPoolExecutor(_THREADS) as threads:
        # `map` keeps the order of the records, whichever thread is done first.
        results = chain.from_iterable(threads.map(place_all, chunks))
        for result in track(results, "looking for images", num_records, transient=True, disable=is_quiet):
            if isinstance(result, Skipped):
                skipped.append(result)
                continue

            placed, num_bytes, text = result
            if not shards or totals[-1] + num_bytes > shard_bytes:
                shards.append([])
                totals.append(0)
                digest.update(b"shard\n")
            shards[-1].append(placed)
            totals[-1] += num_bytes

            image_sizes = [size for _, size in placed.files]
            header = f"{placed.record.key} {image_sizes} {len(text)}\n"
            digest.update(header.encode() + text)
    return SplitLayout(shards, totals, skipped, digest.hexdigest())


def _place(record: RawRecord, images: ImageFolder) -> _Measured | Skipped:
    """Look for a record's files, and measure what its members will take up."""
    try:
        text = encode(record.text)
        # What training will not read is not written.
        read_text({"json": text}, len(record.images))
    except BadRecord as error:
        return Skipped(record.where, "text", error.detail)
    except UnicodeEncodeError:
        return Skipped(record.where, "text", "a letter that UTF-8 does not have")

    files = []
    for names in record.images:
        result = images.find(names)
        if isinstance(result, Skipped):
            return result._replace(where=record.where)
        files.append(result)

    # Each member is a header of one block, and its content filled up to whole blocks.
    sizes = [len(text), *(size for _, size in files)]
    total = sum(_BLOCK + -(-size // _BLOCK) * _BLOCK for size in sizes)
    return _Measured(Placed(record, tuple(files)), total, text)


def refuse_too_many_bad(name: str, skipped: Sequence[Skipped], num_records: int, max_bad_fraction: float) -> None:
    """Refuse a split of which too much is bad.

    Raises:
        ConfigError: If so, with the reasons, their counts, examples, and how to allow it.
    """
    if not num_records:
        raise ConfigError(f"{name}: there is no record in it")
    num_skipped = len(skipped)
    if num_skipped <= max_bad_fraction * num_records and num_skipped < num_records:
        return

    reasons = Counter(record.reason for record in skipped)
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    examples = "".join(f"\n  {record.where}: {record.reason}: {record.detail}" for record in skipped[:_MOST_SHOWN])

    fraction = num_skipped / num_records
    if fraction < 1:
        # Rounded up to a thousandth, so that the value that is shown is enough.
        enough = min(1.0, -(-fraction * 1000 // 1) / 1000)
        remedy = f"to leave them out, max_bad_fraction={enough:g}; check_only=true names each"
    else:
        remedy = "nothing is left"
    raise ConfigError(
        f"{name}: {num_skipped} of {num_records} records ({fraction:.1%}) are bad, more than "
        f"max_bad_fraction={max_bad_fraction:g} ({counts}):{examples}\nmend them, or, {remedy}"
    )
