"""One shard of its records: a deterministic tar of the images' own bytes, each decoded once to see that it can be."""

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

_SUFFIXES = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}


class ShardJob(NamedTuple):
    """What a process is handed: where the shard goes (None: only look), and its records."""

    tar: Path | None
    records: list[Placed]


def report_of(tar: Path) -> Path:
    """Return the place of a shard's report while its split is being made."""
    return tar.with_suffix(".report.json")


def make_shard(job: ShardJob) -> list[Skipped]:
    """Write a shard, whole or not at all, unless it is there; gives what had to be left out.

    Raises:
        WriteFailed: If it cannot be written.
        ConfigError: If an image changed since the plan was made.
    """
    if job.tar is None:
        return [found for placed in job.records if isinstance(found := _members(placed), Skipped)]
    report = report_of(job.tar)
    if job.tar.exists():
        return [Skipped(*entry) for entry in json.loads(report.read_text(encoding="utf-8"))]
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
        # The report first: a shard that is there has one.
        write_whole(report, json.dumps(skipped))
    return skipped


def _members(placed: Placed) -> dict[str, bytes] | Skipped:
    """Return a record's members, its images as they are on disk."""
    members = {"json": encode(placed.record.text)}
    for number, (path, size) in enumerate(placed.files):
        try:
            content = read_image_file(path)
        except OSError as error:
            return Skipped(placed.record.where, "unreadable", f"{path}: {error.strerror}")
        if len(content) != size:
            raise ConfigError(f"{path}: had {size} bytes a moment ago, now {len(content)}: is it still being copied?")
        try:
            open_image(content)
        except BadRecord as error:
            return Skipped(placed.record.where, error.reason, f"{path}: {error.detail}")
        suffix = _SUFFIXES[content[:2]]
        members[suffix if len(placed.files) == 1 else f"{number}.{suffix}"] = content
    return members
