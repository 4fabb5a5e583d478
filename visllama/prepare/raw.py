"""What a reader makes of a raw dataset: records that name their image files, and what had to be left out, by reason."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeGuard

from visllama.errors import ConfigError, require

SPLITS = ("train", "val", "test")
_MOST_IMAGE_BYTES = 2**28
"""Image files that are larger are left out: they may be meant to fill the memory."""


class RawRecord(NamedTuple):
    """A record to be written.

    Attributes:
        key: The record's name in the shard, unique in its split.
        images: For each image, the names that its file may have below the image folder, the likeliest first.
        text: The content of `KEY.json`.
        where: The record's place in the raw file: `FILE:LINE`, or an id.
    """

    key: str
    images: tuple[tuple[str, ...], ...]
    text: dict[str, Any]
    where: str


class Skipped(NamedTuple):
    """A record, or a part of one, that is left out.

    Attributes:
        where: Its place in the raw file.
        reason: One or two words by which such records are counted.
        detail: What is wrong with this one.
    """

    where: str
    reason: str
    detail: str


@dataclass
class RawSplit:
    """The records of a split, in the order in which they will be written, and what is left out of it so far."""

    records: list[RawRecord] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    def add(self, record: RawRecord) -> None:
        """Add a record; one whose key is there already is skipped."""
        if record.key in self.keys:
            self.skip(record.where, "duplicate", f"{record.key} was there before")
            return
        self.keys.add(record.key)
        self.records.append(record)

    def skip(self, where: str, reason: str, detail: str) -> None:
        """Count a record, or a part of one, as left out."""
        self.skipped.append(Skipped(where, reason, detail))


@dataclass(frozen=True)
class RawData:
    """The keys that all raw datasets share; each dataset is a subclass that adds its own keys and reads its files.

    Args:
        name: The folder below `paths.data`.
        split: The split that is written; None takes the splits that the file names.
        workers: The number of processes; None starts one for each core.
        shard_size_mb: The largest size of a shard, in 10^6 bytes.
        max_bad_fraction: The share of the records that may be left out; where more are bad, nothing is written.
        check_only: Look at everything, name each problem, and write nothing.
    """

    name: str
    split: str | None
    workers: int | None
    shard_size_mb: float
    max_bad_fraction: float
    check_only: bool

    # Without annotations: `keys.hints` takes every annotated name for a key of the source.
    FILES = ()
    """The keys that name a file, which must be there."""
    FOLDERS = ("images",)
    """The keys that name a folder, which must be there."""

    def check(self) -> None:
        """Refuse what is seen to be wrong before anything large is read.

        Raises:
            ConfigError: If a value cannot be used; the message names the key, the value, and what to do.
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
                require_folder(key, value)

    def folder(self) -> ImageFolder:
        """Return the folder below which the images lie."""
        return ImageFolder([self.images])  # pyrefly: ignore[missing-attribute]  each subclass declares it, some with None

    def read(self) -> dict[str, RawSplit]:
        """Read the raw files, but not the images, and return the splits.

        Raises:
            ConfigError: If a file is not laid out as it should be.
        """
        raise NotImplementedError


class ImageFolder:
    """The folders in which images are looked for.

    Names come out of files that others wrote: no name leads out of the folder.

    Args:
        roots: The folders, any of which may hold an image; the first one that does is taken.
    """

    def __init__(self, roots: Iterable[str | Path | None]) -> None:
        folders = [Path(root).expanduser() for root in roots if root is not None]
        real_paths = [os.path.realpath(folder) for folder in folders if folder.is_dir()]
        # Two of them may be links to one folder.
        self.roots = list(dict.fromkeys(real_paths))
        self._real = lru_cache(maxsize=4096)(os.path.realpath)

    def find(self, names: Sequence[str]) -> tuple[str, int] | Skipped:
        """Return an image's file and its size in bytes; or why it is not taken, with an empty `where`.

        Args:
            names: The names that the file may have, the likeliest first.
        """
        for name in names:
            if not _is_inside(name):
                return Skipped("", "outside", f"{name!r} is no path below the image folder")

        refusal = None
        for root in self.roots:
            for name in names:
                try:
                    real = self._follow(f"{root}/{name}")
                    if not real.startswith(f"{root}/"):
                        # Another root may hold the file itself.
                        refusal = Skipped("", "outside", f"{name!r} is a link that leads to {real}, out of {root}")
                        continue
                    info = os.lstat(real)
                except (FileNotFoundError, NotADirectoryError, ValueError):
                    continue
                except OSError as error:
                    return Skipped("", "unreadable", f"{name!r}: {error.strerror}")

                # Opening a pipe or a device could wait forever.
                if not stat.S_ISREG(info.st_mode):
                    return Skipped("", "no file", f"{name!r} is no plain file")
                if info.st_size > _MOST_IMAGE_BYTES:
                    detail = f"{name!r} has {info.st_size} bytes; the most are {_MOST_IMAGE_BYTES}"
                    return Skipped("", "too large", detail)
                return real, info.st_size
        return refusal or Skipped("", "missing", f"{names[0]!r} is not there")

    def _follow(self, path: str) -> str:
        """Return the path of a file with all links followed."""
        is_link = stat.S_ISLNK(os.lstat(path).st_mode)
        if is_link:
            return os.path.realpath(path)

        # A folder's links are followed once: for each file anew, it costs a call for each part of its path.
        head, _, last = path.rpartition("/")
        return f"{self._real(head)}/{last}"


def read_image_file(path: str) -> bytes:
    """Return the bytes of a file that an `ImageFolder` has found.

    Raises:
        OSError: If it cannot be read, or has become a link since: the folder has followed its links already.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        return file.read()


def _is_inside(name: object) -> bool:
    """Return whether a name is a path that leads to no place above the folder from which it starts."""
    if not isinstance(name, str) or not name.strip():
        return False
    if name[0] in "/~" or "\\" in name or "\0" in name:
        return False
    return ".." not in PurePosixPath(name).parts


def require_file(key: str, value: str) -> None:
    """Refuse a file that is not there or may not be read.

    Raises:
        ConfigError: If so, naming the key.
    """
    path = Path(value).expanduser()
    problem = "a folder: name the file" if path.is_dir() else "no such file"
    require(path.is_file(), f"{key}={value}: {problem}")
    require(os.access(path, os.R_OK), f"{key}={value}: a file that you may not read")


def require_folder(key: str, value: str) -> None:
    """Refuse a folder that is not there or may not be read.

    Raises:
        ConfigError: If so, naming the key.
    """
    folder = Path(value).expanduser()
    require(folder.is_dir(), f"{key}={value}: no such folder")
    require(os.access(folder, os.R_OK | os.X_OK), f"{key}={value}: a folder that you may not read")


def read_json(key: str, value: str) -> Any:
    """Return the content of a JSON file.

    Args:
        key: The key that names the file, for the error message.
        value: The path of the file.

    Raises:
        ConfigError: If it cannot be read or is no JSON file, naming the key.
    """
    try:
        content = Path(value).expanduser().read_bytes()
        return json.loads(content)
    except OSError as error:
        raise ConfigError(f"{key}={value}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{key}={value}: not a JSON file ({error}): is it unpacked, and whole?") from error


def listed(key: str, value: str, content: Any, name: str, what: str) -> list:
    """Return a list that a JSON file holds under a name.

    Args:
        key: The key that names the file, for the error message.
        value: The path of the file, for the error message.
        content: The content of the file.
        name: The name of the list.
        what: What the file should be, for the error message.

    Raises:
        ConfigError: If there is no such list, saying what is there instead.
    """
    if not isinstance(content, dict) or not isinstance(content.get(name), list):
        raise ConfigError(f"{key}={value}: not a {what}: it has no list {name!r}, but {_describe(content)}")
    return content[name]


def _describe(content: Any) -> str:
    if not isinstance(content, dict):
        return f"is a {type(content).__name__}"
    if not content:
        return "no keys"
    keys = [repr(key) for key in content]
    return f"the keys {', '.join(keys[:8])}"


def texts(values: Iterable[Any]) -> list[str]:
    """Return the texts among values that are more than blanks, without the blanks around them."""
    return [value.strip() for value in values if isinstance(value, str) and value.strip()]


def most_frequent(answers: Sequence[str]) -> str:
    """Return the answer that most annotators gave; the first one where several are equally frequent."""
    # `most_common` keeps the order in which equally frequent answers came.
    [(answer, _)] = Counter(answers).most_common(1)
    return answer


def is_id(value: object) -> TypeGuard[int]:
    """Return whether a value is an id that twelve digits hold."""
    # In Python a bool is an int too, but it is no id.
    return type(value) is int and 0 <= value < 10**12
