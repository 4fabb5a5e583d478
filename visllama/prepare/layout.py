"""Decide which record goes into which shard, before anything is written.

Only the order of the records and the sizes of their files count, so that the shards have the same bytes whatever the
number of processes, and whatever interruption there was.
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
    """A record whose image files were found.

    Attributes:
        record: The record.
        files: For each image of the record, in their order, the real path of its file and its size in bytes.
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
    """Which records go into which shard of a split; nothing is written yet.

    Attributes:
        shards: For each shard, the records that it will hold, in their order.
        shard_bytes: For each shard, the bytes that its files will take up in the tar, or fewer if images turn out bad.
        skipped: What is left out so far: records, and parts of records.
        sha256: A hash of all that determines the bytes of the shards, except for the content of the images.
    """

    shards: list[list[Placed]]
    shard_bytes: list[int]
    skipped: list[Skipped]
    sha256: str

    @property
    def num_records(self) -> int:
        """The number of records in the shards plus the number of entries in `skipped`."""
        num_placed = sum(len(records) for records in self.shards)
        return num_placed + len(self.skipped)


def encode(text: dict) -> bytes:
    """Return the bytes of a record's `KEY.json`: compact JSON in UTF-8, the keys in the order of the dictionary.

    Raises:
        UnicodeEncodeError: If a text holds a letter that UTF-8 does not have (half of a surrogate pair).
    """
    compact_json = json.dumps(text, ensure_ascii=False, separators=(",", ":"))
    return compact_json.encode("utf-8")


def lay_out(split: RawSplit, images: ImageFolder, shard_bytes: float) -> SplitLayout:
    """Look for the image files of each record, and share the records out to shards, in their order.

    Image files are looked up, not opened. A record is left out if its text cannot be used for training, or if
    `images.find` returns no file for one of its images. A progress bar is shown.

    Args:
        split: The records of the split, and what its reader has left out; it is not changed.
        images: The folder in which the images are looked for.
        shard_bytes: The most bytes that the files of a shard may take up in the tar; a record that alone takes up more
            becomes a shard of its own.

    Returns:
        The records of each shard. The list `skipped` holds the entries of `split.skipped`, then the records that are
        left out here.
    """

    def place_all(records: list[RawRecord]) -> list[_Measured | Skipped]:
        return [_place(record, images) for record in records]

    shards: list[list[Placed]] = []
    totals: list[int] = []
    skipped = list(split.skipped)
    digest = hashlib.sha256()

    num_records = len(split.records)
    chunks = (split.records[i : i + _CHUNK] for i in range(0, num_records, _CHUNK))
    is_quiet = not sys.stdout.isatty()

    with ThreadPoolExecutor(_THREADS) as threads:
        # `map` keeps the order of the records, whichever thread is done first.
        results_of_chunks = threads.map(place_all, chunks)
        results = chain.from_iterable(results_of_chunks)
        for result in track(results, "looking for images", num_records, transient=True, disable=is_quiet):
            if isinstance(result, Skipped):
                skipped.append(result)
                continue

            placed, num_bytes, text = result
            needs_new_shard = not shards or totals[-1] + num_bytes > shard_bytes
            if needs_new_shard:
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
    """Look for a record's image files, and count the bytes that the record will take up in a tar.

    Returns:
        These, or why the record is left out.
    """
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
    """Raise an error if too much of a split is left out; otherwise do nothing.

    Args:
        name: The name of the split, for the error message.
        skipped: What is left out.
        num_records: The number of records that were there, what is left out included.
        max_bad_fraction: The largest share of `num_records`, from 0 to 1, that may be left out.

    Raises:
        ConfigError: If more is left out, or everything, or if there was no record. The message holds the reasons with
            their counts, examples, and the value of `max_bad_fraction` that would allow it, if one would.
    """
    if not num_records:
        raise ConfigError(f"{name}: there is no record in it")
    num_skipped = len(skipped)
    is_allowed = num_skipped <= max_bad_fraction * num_records
    if is_allowed and num_skipped < num_records:
        return

    problems = _describe_problems(skipped)
    fraction = num_skipped / num_records
    bad = f"{name}: {num_skipped} of {num_records} records ({fraction:.1%}) are bad"
    if fraction == 1:
        raise ConfigError(f"{bad} {problems}\nnothing is left: mend them; check_only=true names each")

    # Rounded up to a thousandth, so that the value that is shown is enough.
    thousandths = -(-fraction * 1000 // 1)
    enough = min(1.0, thousandths / 1000)
    raise ConfigError(
        f"{bad}, more than max_bad_fraction={max_bad_fraction:g} {problems}\n"
        f"mend them, or, to leave them out, max_bad_fraction={enough:g}; check_only=true names each"
    )


def _describe_problems(skipped: Sequence[Skipped]) -> str:
    """Return the reasons with their counts in brackets, then a few examples, each on a line of its own."""
    reasons = Counter(record.reason for record in skipped)
    counts = [f"{reason} {count}" for reason, count in reasons.most_common()]
    count_list = ", ".join(counts)

    examples = []
    for record in skipped[:_MOST_SHOWN]:
        examples.append(f"  {record.where}: {record.reason}: {record.detail}")
    return "\n".join([f"({count_list}):", *examples])
