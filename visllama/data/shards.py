"""Records out of webdataset tars: `KEY.jpg` (png, webp) beside `KEY.json` with `captions`, or `KEY.txt` with one."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from braceexpand import braceexpand

from visllama.config import ConfigError
from visllama.data.images import SUFFIXES, read_image


class _Member(NamedTuple):
    """Where a file's bytes lie in a tar."""

    offset: int
    size: int


class _Record(NamedTuple):
    tar: Path
    key: str
    image: _Member
    captions: list[str]


class ShardSource:
    """Records of webdataset tars on local disk, by random access. Captions are held in memory.

    Args:
        split: `train` reads `path`, any other `val_path`.
        path: A tar, a folder of tars, or a pattern: `a/{00000..00011}.tar`, `a/*.tar`.
        val_path: The same for validation; None is `path`.

    Raises:
        ConfigError: If nothing is there, a tar is damaged, or a record has no image or no caption.
    """

    def __init__(self, split: str, path: str | None, val_path: str | None = None) -> None:
        chosen = path if split == "train" or val_path is None else val_path
        if chosen is None:
            raise ConfigError("path is not given: a tar, a folder of tars, or a pattern like a/{00000..00011}.tar")
        self.records = [record for tar in _tars(chosen) for record in _records(tar)]
        if len({record.key for record in self.records}) < len(self.records):  # tars that each count from zero
            self.records = [record._replace(key=f"{record.tar.stem}/{record.key}") for record in self.records]
        if not self.records:
            raise ConfigError(f"path={chosen}: its tars hold no record")

    def __len__(self) -> int:
        return len(self.records)

    @property
    def num_pairs(self) -> int:
        """Image-caption pairs."""
        return sum(len(record.captions) for record in self.records)

    def __getitem__(self, index: int) -> dict:
        """Give a record: `key`, `image` (PIL), `captions`.

        Raises:
            ConfigError: If its image cannot be decoded.
        """
        record = self.records[index]
        file = io.BytesIO(_read(record.tar, record.image))
        image = read_image(file, f"{record.tar}: the image of record {record.key!r}")
        return {"key": record.key, "image": image, "captions": record.captions}


def _tars(pattern: str) -> list[Path]:
    """Give the tars that a path, folder or pattern names."""
    if ":" in pattern.split("/")[0]:
        raise ConfigError(f"path={pattern}: only local tars are read; pipes and remote addresses are not")
    found: list[Path] = []
    for name in braceexpand(pattern) if not Path(pattern).exists() else [pattern]:
        path = Path(name).expanduser()
        if path.is_dir():
            tars = sorted(path.glob("*.tar"))
        elif path.is_file():
            tars = [path]
        else:
            tars = sorted(path.parent.glob(path.name)) if "*" in path.name else []
        if not tars:
            raise ConfigError(f"path={pattern}: no tar at {path}")
        found += tars
    return found


def _records(tar: Path) -> Iterator[_Record]:
    """Yield a tar's records, with their captions read.

    Raises:
        ConfigError: At a damaged header, or a record without image or caption.
    """
    for key, members in _groups(tar).items():
        images = [suffix for suffix in SUFFIXES if suffix in members]
        if len(images) != 1:
            raise ConfigError(f"{tar}: record {key!r} has {len(images)} images ({', '.join(members)}): one is needed")
        yield _Record(tar, key, members[images[0]], _captions(tar, key, members))


def _groups(tar: Path) -> dict[str, dict[str, _Member]]:
    """Give the members of each key by their suffix."""
    groups: dict[str, dict[str, _Member]] = {}
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                key = f"{folder}/{stem}".lstrip("/")
                if suffix.lower() in groups.setdefault(key, {}):
                    raise ConfigError(f"{tar}: {member.name} stands in it twice")
                groups[key][suffix.lower()] = _Member(member.offset_data, member.size)
            end = file.offset
    except (tarfile.TarError, OSError) as error:
        raise ConfigError(f"{tar}: no whole tar file ({error})") from error
    # tarfile takes a damaged header for the end: a real end is a block of zeros, or the end of the file.
    with open(tar, "rb") as file:
        file.seek(end)
        if any(any(block) for block in iter(lambda: file.read(2**20), b"")):
            raise ConfigError(f"{tar}: damaged at byte {end}, or several tars in one: what follows would be lost")
    return groups


def _captions(tar: Path, key: str, members: dict[str, _Member]) -> list[str]:
    try:
        described = json.loads(_read(tar, members["json"])) if "json" in members else {}
        captions = described.get("captions") if isinstance(described, dict) else None
        if captions is None and "txt" in members:
            captions = [_read(tar, members["txt"]).decode("utf-8")]
    except ValueError as error:
        raise ConfigError(f"{tar}: the text of record {key!r} cannot be read ({error})") from error
    if not isinstance(captions, list) or not captions or not all(isinstance(text, str) for text in captions):
        raise ConfigError(f"{tar}: record {key!r} has no captions: KEY.json with 'captions': [text], or KEY.txt")
    if not all(text.strip() for text in captions):
        raise ConfigError(f"{tar}: record {key!r} has an empty caption: give it one, or leave the record out")
    return [text.strip() for text in captions]


def _read(tar: Path, member: _Member) -> bytes:
    with open(tar, "rb") as file:
        file.seek(member.offset)
        data = file.read(member.size)
    if len(data) != member.size:
        raise ConfigError(f"{tar}: cut short: {len(data)} of {member.size} bytes at byte {member.offset}")
    return data
