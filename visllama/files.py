"""How files are written whole or not at all, locked, and read when somebody else may have made them."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from visllama.errors import ConfigError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that is full, or of what a user may write there."""


class WriteFailed(ConfigError):
    """A file could not be written; nothing of it is there, and what stood in its place is as it was.

    Args:
        path: The file, or the folder that it was to lie in.
        reason: Why it could not be written, for example "No space left on device".
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: cannot be written ({self.reason})"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there then takes the place of `path`, whole or not at all.

    Others may read the file as far as the umask lets them, whatever mode its writer gives it (safetensors': 0600).

    Raises:
        WriteFailed: If it cannot be written; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)

        yield temporary

        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        flush(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, SafetensorError):  # no OSError: it holds the words of one
            raise WriteFailed(path, str(error).rpartition("I/O error: ")[2].partition(" (os error")[0]) from error
        is_of_the_disk = isinstance(error, OSError) and error.errno in (*NO_ROOM, errno.EIO)
        if is_of_the_disk or (isinstance(error, OSError) and error.filename == str(temporary)):
            raise WriteFailed(path, error.strerror or str(error)) from error
        raise


def write_whole(path: Path, content: str) -> None:
    """Write a text file whole or not at all, whatever ends the program meanwhile.

    Raises:
        WriteFailed: If it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; what is written there then is the folder `path`, whole or not at all.

    What an earlier process that was killed has left beside it is removed first.

    Args:
        path: The folder to make: not there yet, or empty.

    Raises:
        ConfigError: If there is something at `path` already.
        WriteFailed: If it cannot be written; nothing of it is there.
    """
    check_new_folder(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        temporary.mkdir()

        yield temporary

        for file in [*temporary.rglob("*"), temporary]:
            flush(file)
        os.replace(temporary, path)
        flush(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = _reason_of_the_disk(error, temporary)
        if reason is not None:
            raise WriteFailed(path, reason) from error
        raise


def check_new_folder(path: Path) -> None:
    """Check that a folder can be made: there is none yet, or an empty one.

    Raises:
        ConfigError: If there is something already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path}: something is there already: name a new folder, or remove that one")


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary folders of `path` whose process is no more."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        process_id = left.name.split(".")[-2]
        if process_id.isdecimal() and not _is_running(int(process_id)):
            shutil.rmtree(left, ignore_errors=True)


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _reason_of_the_disk(error: BaseException, folder: Path) -> str | None:
    """Return why a file of `folder` could not be written; None for any other error."""
    if isinstance(error, SafetensorError) and "I/O error: " in str(error):  # no OSError: it holds the words of one
        return str(error).rpartition("I/O error: ")[2].partition(" (os error")[0]
    if not isinstance(error, OSError):
        return None
    is_of_the_folder = str(error.filename).startswith(str(folder))
    return error.strerror if is_of_the_folder or error.errno in (*NO_ROOM, errno.EIO) else None


def flush(path: Path) -> None:
    """Flush a file to the disk; of a folder, which names stand in it, behind a file that was renamed there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold the lock of this name, which dies with the process; on a file system without locks, hold none.

    Args:
        path: The file that stands for the lock; it and its folder are made, and it stays.
        busy: The message where another process holds the lock; None waits until it is free.

    Raises:
        ConfigError: With `busy`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if busy is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(busy) from None
        except OSError:
            pass
        yield


def open_regular(path: Path) -> BinaryIO:
    """Open a file that somebody else may have made: neither a pipe nor an endless device is waited for.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is something else than a file.
    """
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115 (the caller closes it)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{path.name} is no regular file")
    return file


def read_regular(path: Path, most_bytes: int = 2**20) -> str:
    """Read a text file that somebody else may have made: a regular one, of no more than `most_bytes`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is something else, too large, or no UTF-8.
    """
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"{path.name} has more than {most_bytes:,} bytes")
    return content.decode("utf-8")
