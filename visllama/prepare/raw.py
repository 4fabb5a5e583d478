"""What every raw dataset is read to: records that name their image files, and what had to be left out, by reason."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from visllama.errors import ConfigError, require

SPLITS = ("train", "val", "test")
_MOST_IMAGE_BYTES = 2**28


class RawRecord(NamedTuple):
    """A record to be written.

    Attributes:
        key: Its name in the shard, unique in its split.
        images: Of each image, the names that its file may have below the image folder, the likeliest first.
        text: What `KEY.json` will hold.
        where: Its place in the raw file: `FILE:LINE`, or an id.
    """

    key: str
    images: tuple[tuple[str, ...], ...]
    text: dict[str, Any]
    where: str


class Skipped(NamedTuple):
    """What is left out, where it stands, and why: a word to count by, and what was found."""

    where: str
    reason: str
    detail: str


@dataclass
class RawSplit:
    """The records of a split, in the order in which they will be written, and what was left out of it so far."""

    records: list[RawRecord] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    def add(self, record: RawRecord) -> None:
        if record.key in self.keys:
            return self.skip(record.where, "duplicate", f"{record.key} was there before")
        self.keys.add(record.key)
        self.records.append(record)

    def skip(self, where: str, reason: str, detail: str) -> None:
        self.skipped.append(Skipped(where, reason, detail))


@dataclass(frozen=True)
class RawData:
    """The keys that all raw datasets share; each of them is a class that adds its own and reads them.

    Args:
        name: The folder below `paths.data`.
        split: The split that is made; None is what the file says.
        workers: Processes; None is one a core.
        shard_size_mb: Of a shard, at most, in 10^6 bytes.
        max_bad_fraction: Of all records: where more had to be left out, nothing is made.
        check_only: Look at everything, name each problem, write nothing.
    """

    name: str
    split: str | None
    workers: int | None
    shard_size_mb: float
    max_bad_fraction: float
    check_only: bool

    FILES = ()
    """Keys that name a file that must be there."""
    FOLDERS = ("images",)
    """Keys that name a folder likewise."""

    def check(self) -> None:
        """Refuse what is seen to be wrong before anything large is read.

        Raises:
            ConfigError: Naming the key, the value found, and what to do.
        """
        require(self.split in (None, *SPLITS), f"split={self.split}: choose {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
        require(self.shard_size_mb > 0, f"shard_size_mb={self.shard_size_mb}: must be more than 0")
        fraction = self.max_bad_fraction
        require(0 <= fraction <= 1, f"max_bad_fraction={fraction}: must be in [0, 1]")
        for key in self.FILES:
            require_file(key, getattr(self, key))
        for key in self.FOLDERS:
            value = getattr(self, key)
            if value is not None:
                folder = Path(value).expanduser()
                require(folder.is_dir(), f"{key}={value}: no such folder")
                require(os.access(folder, os.R_OK | os.X_OK), f"{key}={value}: a folder that you may not read")

    def folder(self) -> ImageFolder:
        """Return the folder below which the images lie."""
        return ImageFolder([self.images])  # type: ignore[attr-defined]

    def read(self) -> dict[str, RawSplit]:
        """Read the raw files, not the images; gives the splits.

        Raises:
            ConfigError: If a file is not laid out as it should be.
        """
        raise NotImplementedError


class ImageFolder:
    """Where images lie. Names come out of files that others wrote: none leads out of the folder.

    Args:
        roots: Folders, each of which may hold an image; the first that does is taken.
    """

    def __init__(self, roots: Iterable[str | Path | None]) -> None:
        found = (Path(root).expanduser() for root in roots if root is not None)
        self.roots = list(dict.fromkeys(os.path.realpath(root) for root in found if root.is_dir()))
        self._real = lru_cache(maxsize=4096)(os.path.realpath)

    def find(self, names: Sequence[str]) -> tuple[str, int] | Skipped:
        """Return an image's file and its bytes; or why it is not taken, with no place as yet."""
        for name in names:
            if not _is_inside(name):
                return Skipped("", "outside", f"{name!r} is no path below the image folder")
        refused = None
        for root in self.roots:
            for name in names:
                path = f"{root}/{name}"
                try:
                    is_link = stat.S_ISLNK(os.lstat(path).st_mode)
                    # A folder's links are followed once: for each file anew, it costs a call for each part of its path.
                    head, _, last = path.rpartition("/")
                    real = os.path.realpath(path) if is_link else f"{self._real(head)}/{last}"
                    if not real.startswith(f"{root}/"):
                        refused = Skipped("", "outside", f"{name!r} is a link that leads to {real}, out of {root}")
                        continue
                    info = os.lstat(real)
                except (FileNotFoundError, NotADirectoryError, ValueError):
                    continue
                except OSError as error:
                    return Skipped("", "unreadable", f"{name!r}: {error.strerror}")
                if not stat.S_ISREG(info.st_mode):
                    return Skipped("", "no file", f"{name!r} is no plain file")
                if info.st_size > _MOST_IMAGE_BYTES:
                    most = f"{name!r} has {info.st_size} bytes; the most are {_MOST_IMAGE_BYTES}"
                    return Skipped("", "too large", most)
                return real, info.st_size
        return refused or Skipped("", "missing", f"{names[0]!r} is not there")


def read_image_file(path: str) -> bytes:
    """Return the bytes of a file that an `ImageFolder` has found.

    Raises:
        OSError: If it cannot be read, or has become a link since: the folder has followed its links already.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        return file.read()


def _is_inside(name: object) -> bool:
    if not isinstance(name, str) or not name.strip() or name[0] in "/~" or "\\" in name or "\0" in name:
        return False
    return ".." not in PurePosixPath(name).parts


def require_file(key: str, value: str) -> None:
    """Refuse a file that is not there or may not be read.

    Raises:
        ConfigError: If so, naming the key.
    """
    path = Path(value).expanduser()
    require(path.is_file(), f"{key}={value}: {'a folder: name the file' if path.is_dir() else 'no such file'}")
    require(os.access(path, os.R_OK), f"{key}={value}: a file that you may not read")


def read_json(key: str, value: str) -> Any:
    """Read a JSON file.

    Raises:
        ConfigError: If it is none, naming the key.
    """
    try:
        return json.loads(Path(value).expanduser().read_bytes())
    except OSError as error:
        raise ConfigError(f"{key}={value}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{key}={value}: no JSON file ({error}): is it unpacked, and whole?") from error


def listed(key: str, value: str, content: Any, name: str, what: str) -> list:
    """Return a list that a JSON file holds under a name.

    Raises:
        ConfigError: If there is none, saying what is there instead.
    """
    if not isinstance(content, dict) or not isinstance(content.get(name), list):
        raise ConfigError(f"{key}={value}: no {what}: it has no list {name!r}, but {_described(content)}")
    return content[name]


def _described(content: Any) -> str:
    if isinstance(content, dict):
        return f"the keys {', '.join(map(repr, list(content)[:8])) or 'of none'}"
    return f"is a {type(content).__name__}"


def texts(values: Iterable[Any]) -> list[str]:
    """Return the texts among values that are more than blanks."""
    return [value.strip() for value in values if isinstance(value, str) and value.strip()]


def is_id(value: Any) -> bool:
    """Return whether a value is an id that twelve digits hold."""
    return type(value) is int and 0 <= value < 10**12
