"""Write a shard: a tar with the text and the unchanged image files of each record; the same records are the same bytes.

Each image is decoded once, to see that it can be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from webdataset import TarWriter

from visllama.errors import BadRecord, ConfigError
from visllama.files import replacing, write_whole
from visllama.images.decode import open_image
from visllama.prepare.layout import Placed, encode
from visllama.prepare.raw import Skipped, read_image_file

# The first two bytes of each format that `open_image` accepts.
_SUFFIXES = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}


class ShardJob(NamedTuple):
    """A shard that `make_shard` is to write.

    Attributes:
        tar: The path of the shard. If it is None, `make_shard` only decodes the images, and writes nothing.
        records: The records of the shard, in their order.
    """

    tar: Path | None
    records: list[Placed]


def report_of(tar: Path) -> Path:
    """Return the path of a shard's report, a JSON list of the records that the shard leaves out.

    No file is looked for. `make_shard` writes the report beside the tar; `write_split` removes it when the whole split
    is written.
    """
    return tar.with_suffix(".report.json")


def make_shard(job: ShardJob) -> list[Skipped]:
    """Write a shard, whole or not at all, and return the records that it leaves out.

    A record is left out if one of its images cannot be read or decoded. A shard that is there already is not written
    again: the records that it leaves out are read from its report.

    Args:
        job: The shard and its records; without a path of the shard, the images are only decoded.

    Raises:
        WriteFailed: If the shard cannot be written.
        ConfigError: If an image file no longer has the size that its record holds.
    """
    if job.tar is None:
        results = (_members(placed) for placed in job.records)
        return [result for result in results if isinstance(result, Skipped)]

    report = report_of(job.tar)
    if job.tar.exists():
        entries = json.loads(report.read_text(encoding="utf-8"))
        return [Skipped(*entry) for entry in entries]

    skipped = []
    with replacing(job.tar) as temporary:
        # No time, no owner: the same records are the same bytes.
        with (
            open(temporary, "wb") as file,
            TarWriter(file, user="", group="", mtime=0, encoder=False) as tar,
        ):
            for placed in job.records:
                members = _members(placed)
                if isinstance(members, Skipped):
                    skipped.append(members)
                else:
                    tar.write({"__key__": placed.record.key, **members})
        # The tar takes its name when this context ends: a shard that is there has a report.
        write_whole(report, json.dumps(skipped))
    return skipped


def _members(placed: Placed) -> dict[str, bytes] | Skipped:
    """Return the content of each file that a record has in the tar, by its suffix; or why the record is left out."""
    members = {"json": encode(placed.record.text)}
    for number, (path, size) in enumerate(placed.files):
        try:
            content = read_image_file(path)
        except OSError as error:
            return Skipped(placed.record.where, "unreadable", f"{path}: {error.strerror}")

        # The layout of the shards follows from the sizes, and would be another one now.
        if len(content) != size:
            raise ConfigError(f"{path}: had {size} bytes a moment ago, now {len(content)}: is it still being copied?")
        try:
            open_image(content)
        except BadRecord as error:
            return Skipped(placed.record.where, error.reason, f"{path}: {error.detail}")

        suffix = _SUFFIXES[content[:2]]
        members[suffix if len(placed.files) == 1 else f"{number}.{suffix}"] = content
    return members
