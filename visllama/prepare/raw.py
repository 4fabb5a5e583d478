"""What is common to all raw datasets: their keys, the records that are read from their files, and their images.

A reader (a subclass of `RawData`) turns the files of a dataset into records that name their image files, and keeps what
it had to leave out, with the reason.
"""

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
"""The names that a split may have."""
_MOST_IMAGE_BYTES = 2**28
"""Image files that are larger are left out: they may be meant to fill the memory."""


class RawRecord(NamedTuple):
    """A record that is to be written to a shard: its text, and the names of its image files.

    Attributes:
        key: The name of the record in the shard, unique in its split; its text becomes the file `KEY.json`.
        images: For each image of the record, the paths that its file may have below the image folder, the likeliest
            first.
        text: The content of `KEY.json`: captions, questions or a conversation, with metadata (`visllama.data.record`).
        where: Where the record stands in the raw file, for messages: for example "FILE:LINE", or an id.
    """

    key: str
    images: tuple[tuple[str, ...], ...]
    text: dict[str, Any]
    where: str


class Skipped(NamedTuple):
    """A record, or a part of one, that is left out.

    Attributes:
        where: Where it stands in the raw file, for messages: for example "FILE:LINE", or an id.
        reason: The kind of the problem, in one or two words, by which problems are counted: for example "missing".
        detail: What is wrong with this one, for messages.
    """

    where: str
    reason: str
    detail: str


@dataclass
class RawSplit:
    """The records of a split that were read, and what had to be left out; `add` and `skip` fill it.

    Attributes:
        records: The records, in the order in which they will be written.
        skipped: What is left out, in the order in which it was found.
        keys: The keys of all records, by which `add` finds repeated ones.
    """

    records: list[RawRecord] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    def add(self, record: RawRecord) -> None:
        """Append a record; one whose key is there already is added to `skipped` instead, as a "duplicate"."""
        if record.key in self.keys:
            self.skip(record.where, "duplicate", f"{record.key} was there before")
            return
        self.keys.add(record.key)
        self.records.append(record)

    def skip(self, where: str, reason: str, detail: str) -> None:
        """Append an entry to `skipped`, for a record or a part of one that is left out.

        Args:
            where: Where it stands in the raw file, for messages.
            reason: The kind of the problem, in one or two words.
            detail: What is wrong with this one, for messages.
        """
        self.skipped.append(Skipped(where, reason, detail))


@dataclass(frozen=True)
class RawData:
    """The reader of a raw dataset, with the keys that all of them share; each dataset is a subclass.

    A subclass adds its own keys as fields, among them `images`, and implements `read`. `check` is called before `read`.

    Args:
        name: The folder below `paths.data` that the shards are written to; the reader does not use it.
        split: The split that is written, "train", "val" or "test"; None lets the subclass choose, by what the files or
            their names say.
        workers: The number of processes that write; None starts one for each core.
        shard_size_mb: The largest size of a shard, in 10^6 bytes.
        max_bad_fraction: The largest share of a split's records, from 0 to 1, that may be left out; with more, the
            split is not written.
        check_only: Whether only to look at all files and report each problem, and to write nothing.
    """

    name: str
    split: str | None
    workers: int | None
    shard_size_mb: float
    max_bad_fraction: float
    check_only: bool

    # Without annotations: `keys.hints` takes every annotated name for a key of the source.
    FILES = ()
    """The keys whose values are paths of files; `check` requires each of these files."""
    FOLDERS = ("images",)
    """The keys whose values are paths of folders, or None; `check` requires each of these folders."""

    def check(self) -> None:
        """Check the values of the keys, and that the files and folders they name are there; no file is opened.

        Raises:
            ConfigError: If a value cannot be used; the message names the key, the value, and what to do.
        """
        if self.split is not None:
            require_split(self.split)
        size = self.shard_size_mb
        require(size > 0, f"shard_size_mb={size}: must be more than 0")
        fraction = self.max_bad_fraction
        require(0 <= fraction <= 1, f"max_bad_fraction={fraction}: must be in [0, 1]")

        for key in self.FILES:
            require_file(key, getattr(self, key))
        for key in self.FOLDERS:
            value = getattr(self, key)
            if value is not None:
                require_folder(key, value)

    def folder(self) -> ImageFolder:
        """Return the folder in which the image files of the records are looked for, the value of `images`."""
        return ImageFolder([self.images])  # pyrefly: ignore[missing-attribute]  each subclass declares it, some with None

    def read(self) -> dict[str, RawSplit]:
        """Read the records from the files of the dataset; image files are not looked at.

        Returns:
            The records of each split, and what was left out of them, by the name of the split.

        Raises:
            ConfigError: If a file cannot be read or is not laid out as it should be, or its split is not known.
        """
        raise NotImplementedError


class ImageFolder:
    """One or more folders in which image files are looked for.

    The names of images come from files that others wrote, so that no name, and no link below a folder, may lead out of
    the folder that it starts from.

    Args:
        roots: The folders, in the order in which they are searched. `~` is the home folder; a folder that is not there,
            and None, are left out.

    Attributes:
        roots: The absolute paths of these folders, with links followed, each once.
    """

    def __init__(self, roots: Iterable[str | Path | None]) -> None:
        real_paths = []
        for root in roots:
            if root is None:
                continue
            folder = Path(root).expanduser()
            if folder.is_dir():
                real_paths.append(os.path.realpath(folder))
        # Two of them may be links to one folder.
        self.roots = list(dict.fromkeys(real_paths))
        self._real = lru_cache(maxsize=4096)(os.path.realpath)

    def find(self, names: Sequence[str]) -> tuple[str, int] | Skipped:
        """Look for an image file in the folders, without opening it.

        The folders are searched in their order, and in each folder the names in their order; the first file counts.

        Args:
            names: The paths that the file may have below a folder, the likeliest first; at least one.

        Returns:
            The real path of the file and its size in bytes. A `Skipped` with an empty `where` if no file is there, a
            name leads out of the folders, or the file is no plain file, larger than 2^28 bytes, or unreadable.
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
                        detail = f"{name!r} is a link that leads to {real}, out of {root}"
                        refusal = Skipped("", "outside", detail)
                        continue
                    info = os.lstat(real)
                except (FileNotFoundError, NotADirectoryError, ValueError):
                    continue
                except OSError as error:
                    return Skipped("", "unreadable", f"{name!r}: {error.strerror}")

                # Opening a pipe or a device could wait forever.
                if not stat.S_ISREG(info.st_mode):
                    return Skipped("", "no file", f"{name!r} is no plain file")
                size = info.st_size
                if size > _MOST_IMAGE_BYTES:
                    detail = f"{name!r} has {size} bytes; the most are {_MOST_IMAGE_BYTES}"
                    return Skipped("", "too large", detail)
                return real, size

        if refusal is not None:
            return refusal
        return Skipped("", "missing", f"{names[0]!r} is not there")

    def _follow(self, path: str) -> str:
        """Return the path of a file with all links followed."""
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            return os.path.realpath(path)

        # A folder's links are followed once: for each file anew, it costs a call for each part of its path.
        head, _, last = path.rpartition("/")
        real_head = self._real(head)
        return f"{real_head}/{last}"


def read_image_file(path: str) -> bytes:
    """Read an image file that `ImageFolder.find` has found, and return its bytes.

    Args:
        path: The path that `find` has returned, whose links are followed already.

    Raises:
        OSError: If the file cannot be read, or has become a link since it was found.
    """
    # Between the two calls somebody may have put a link or a pipe in the place of the file.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        return file.read()


def _is_inside(name: object) -> bool:
    """Return whether a name is a relative path without "..", so that it stays below the folder it starts from."""
    if not isinstance(name, str) or not name.strip():
        return False
    if name[0] in "/~" or "\\" in name or "\0" in name:
        return False
    parts = PurePosixPath(name).parts
    return ".." not in parts


def require_split(split: str) -> None:
    """Check that a text is the name of a split: "train", "val" or "test".

    Raises:
        ConfigError: If the text is another one; the message names the key `split`.
    """
    *first_names, last_name = SPLITS
    choices = f"{', '.join(first_names)} or {last_name}"
    require(split in SPLITS, f"split={split}: choose {choices}")


def require_file(key: str, value: str) -> None:
    """Check that a file is there and that this user may read it; the file is not opened.

    Args:
        key: The key that names the file, for the error message.
        value: The path of the file; `~` is the home folder.

    Raises:
        ConfigError: If the path is no file, or the file may not be read; the message names the key and the path.
    """
    path = Path(value).expanduser()
    problem = "a folder: name the file" if path.is_dir() else "no such file"
    require(path.is_file(), f"{key}={value}: {problem}")
    is_readable = os.access(path, os.R_OK)
    require(is_readable, f"{key}={value}: a file that you may not read")


def require_folder(key: str, value: str) -> None:
    """Check that a folder is there and may be read.

    Args:
        key: The key that names the folder, for the error message.
        value: The path of the folder; `~` is the home folder.

    Raises:
        ConfigError: If the path is no folder, or the folder may not be read; the message names the key and the path.
    """
    folder = Path(value).expanduser()
    require(folder.is_dir(), f"{key}={value}: no such folder")
    # To look for a file in a folder takes the right to enter it.
    is_readable = os.access(folder, os.R_OK | os.X_OK)
    require(is_readable, f"{key}={value}: a folder that you may not read")


def read_file(key: str, value: str) -> bytes:
    """Read a file whole, and return its content.

    Args:
        key: The key that names the file, for the error message.
        value: The path of the file; `~` is the home folder.

    Raises:
        ConfigError: If the file cannot be read; the message names the key.
    """
    path = Path(value).expanduser()
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{key}={value}: cannot be read ({error.strerror})") from error


def read_json(key: str, value: str) -> Any:
    """Read a JSON file whole, and return its content.

    Args:
        key: The key that names the file, for the error message.
        value: The path of the file; `~` is the home folder.

    Raises:
        ConfigError: If the file cannot be read or is no JSON; the message names the key.
    """
    content = read_file(key, value)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{key}={value}: not a JSON file ({error}): is it unpacked, and whole?") from error


def listed(key: str, value: str, content: Any, name: str, what: str) -> list:
    """Return the list that the content of a JSON file holds under a name, not a copy; its items are not checked.

    Args:
        key: The key that names the file, for the error message.
        value: The path of the file, for the error message; it is not read.
        content: The content of the file, as `read_json` returns it.
        name: The name under which the list stands.
        what: What the file should be, for the error message: for example "COCO captions file".

    Raises:
        ConfigError: If the content is no JSON object with such a list; the message says what is there instead.
    """
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        description = _describe(content)
        raise ConfigError(f"{key}={value}: not a {what}: it has no list {name!r}, but {description}")
    return entries


def _describe(content: Any) -> str:
    """Return what a JSON file holds, as the end of the sentence in which `listed` names it."""
    if not isinstance(content, dict):
        return f"is a {type(content).__name__}"
    if not content:
        return "no keys"
    keys = [repr(key) for key in content]
    first_keys = ", ".join(keys[:8])
    return f"the keys {first_keys}"


def texts(values: Iterable[Any]) -> list[str]:
    """Return the texts among some values, in their order and without white space at both ends.

    Values that are no text, and texts of nothing but white space, are left out.
    """
    non_empty = []
    for value in values:
        if isinstance(value, str):
            text = value.strip()
            if text:
                non_empty.append(text)
    return non_empty


def most_frequent(answers: Sequence[str]) -> str:
    """Return the answer that occurs most often; of several that occur equally often, the one that comes first.

    Args:
        answers: The answers, at least one.

    Raises:
        ValueError: If there is no answer.
    """
    # `most_common` keeps the order in which equally frequent answers came.
    [(answer, _)] = Counter(answers).most_common(1)
    return answer


def is_id(value: object) -> TypeGuard[int]:
    """Return whether a value is an int, and no bool, from 0 to 10^12 - 1: an id that twelve digits can write."""
    # In Python a bool is an int too, but it is no id.
    return type(value) is int and 0 <= value < 10**12
