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
_THREADS = 16  # a network file system answers many questions at once, each slowly
_CHUNK = 64
_MOST_SHOWN = 5


class Placed(NamedTuple):
    """A record with its image files (path and bytes)."""

    record: RawRecord
    files: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class SplitLayout:
    """A split's shards before they are written.

    Attributes:
        shards: The records of each.
        shard_bytes: What the members of each take up, at most.
        skipped: What is left out so far.
        sha256: Of all that the shards' bytes follow from, but for what the images hold.
    """

    shards: list[list[Placed]]
    shard_bytes: list[int]
    skipped: list[Skipped]
    sha256: str

    @property
    def num_records(self) -> int:
        """Records that were there, those that are left out included."""
        return sum(map(len, self.shards)) + len(self.skipped)


def encode(text: dict) -> bytes:
    """Return the content of `KEY.json`."""
    return json.dumps(text, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def lay_out(split: RawSplit, images: ImageFolder, shard_bytes: float) -> SplitLayout:
    """Look for each record's files, and share the records out in their order.

    Args:
        split: The records.
        images: Where their images lie.
        shard_bytes: Most of a shard, unless one record alone is more.
    """

    def place(record: RawRecord) -> tuple[Placed, int, bytes] | Skipped:
        try:
            text = encode(record.text)
            read_text({"json": text}, len(record.images))  # what training will not read is not written
        except (BadRecord, UnicodeEncodeError) as error:
            return Skipped(record.where, "text", getattr(error, "detail", "a letter that UTF-8 does not have"))
        found = [images.find(names) for names in record.images]
        for problem in found:
            if isinstance(problem, Skipped):
                return problem._replace(where=record.where)
        sizes = [len(text), *(size for _, size in found)]
        total = sum(_BLOCK + -(-size // _BLOCK) * _BLOCK for size in sizes)
        return Placed(record, tuple(found)), total, text

    shards, totals, skipped, digest = [], [], list(split.skipped), hashlib.sha256()
    with ThreadPoolExecutor(_THREADS) as threads:
        chunks = (split.records[i : i + _CHUNK] for i in range(0, len(split.records), _CHUNK))
        looked = chain.from_iterable(threads.map(lambda records: list(map(place, records)), chunks))
        quiet = not sys.stdout.isatty()
        for result in track(looked, "looking for images", len(split.records), transient=True, disable=quiet):
            if isinstance(result, Skipped):
                skipped.append(result)
                continue
            placed, size, text = result
            if not shards or totals[-1] + size > shard_bytes:
                shards.append([])
                totals.append(0)
                digest.update(b"shard\n")
            shards[-1].append(placed)
            totals[-1] += size
            digest.update(f"{placed.record.key} {[size for _, size in placed.files]} {len(text)}\n".encode() + text)
    return SplitLayout(shards, totals, skipped, digest.hexdigest())


def refuse_too_many_bad(name: str, skipped: Sequence[Skipped], num_records: int, max_bad_fraction: float) -> None:
    """Refuse a split of which too much is bad.

    Raises:
        ConfigError: With the reasons, their counts, examples, and how to allow it.
    """
    if num_records and len(skipped) <= max_bad_fraction * num_records and len(skipped) < num_records:
        return
    if not num_records:
        raise ConfigError(f"{name}: there is no record in it")
    counts = ", ".join(f"{reason} {count}" for reason, count in Counter(s.reason for s in skipped).most_common())
    examples = "".join(f"\n  {s.where}: {s.reason}: {s.detail}" for s in skipped[:_MOST_SHOWN])
    fraction = len(skipped) / num_records
    allow = (
        f"to leave them out, max_bad_fraction={min(1.0, -(-fraction * 1000 // 1) / 1000):g}; check_only=true names each"
        if fraction < 1
        else "nothing is left"
    )
    raise ConfigError(
        f"{name}: {len(skipped)} of {num_records} records ({fraction:.1%}) are bad, more than "
        f"max_bad_fraction={max_bad_fraction:g} ({counts}):{examples}\nmend them, or, {allow}"
    )
