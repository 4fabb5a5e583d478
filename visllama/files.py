"""How files are written whole or not at all, locked, and read when somebody else may have made them."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from visllama.errors import ConfigError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that is full, or of what a user may write there."""


class WriteFailed(ConfigError):
    """Raised when a file could not be written; nothing of it is there, and what stood in its place is as it was.

    Args:
        path: The file, or the folder that it was to lie in.
        reason: Why it could not be written, for example "No space left on device".
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: cannot be written ({self.reason})"


@contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """Yield a temporary path beside `path`; what is written there then takes the place of `path`, whole or not at all.

    Raises:
        WriteFailed: If the file cannot be written; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        # Made by us first, to learn the mode that the umask gives: safetensors makes files that others cannot read.
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)

        yield temporary

        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        flush(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, SafetensorError):
            raise WriteFailed(path, _reason_of_safetensors(error)) from error
        if isinstance(error, OSError):
            is_of_the_disk = error.errno in (*NO_ROOM, errno.EIO)
            is_of_the_file = error.filename == str(temporary)
            if is_of_the_disk or is_of_the_file:
                raise WriteFailed(path, error.strerror or str(error)) from error
        raise


def _reason_of_safetensors(error: SafetensorError) -> str:
    """Return the words of the operating system in an error of safetensors, which is no `OSError`."""
    _, _, reason = str(error).rpartition("I/O error: ")
    reason, _, _ = reason.partition(" (os error")
    return reason


def write_whole(path: Path, content: str) -> None:
    """Write a text file whole or not at all, whatever ends the program meanwhile.

    Raises:
        WriteFailed: If it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


@contextmanager
def new_folder(path: Path) -> Generator[Path, None, None]:
    """Yield a temporary folder beside `path`; what is written there then is the folder `path`, whole or not at all.

    Temporary folders that killed processes have left beside it are removed first.

    Args:
        path: The folder to make: not there yet, or empty.

    Raises:
        ConfigError: If there is something at `path` already.
        WriteFailed: If the folder cannot be written; nothing of it is there.
    """
    check_new_folder(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        temporary.mkdir()

        yield temporary

        # All has to be on the disk before the name is: after a loss of power the folder would be there, half empty.
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
    if not path.exists():
        return
    is_empty_folder = path.is_dir() and not any(path.iterdir())
    if not is_empty_folder:
        raise ConfigError(f"{path}: something is there already: name a new folder, or remove that one")


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary folders of `path` whose process has ended."""
    for abandoned in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        process_id = abandoned.name.split(".")[-2]
        if process_id.isdecimal() and not _is_running(int(process_id)):
            shutil.rmtree(abandoned, ignore_errors=True)


def _is_running(process_id: int) -> bool:
    """Return whether a process of this machine runs."""
    # Signal 0 is not sent: the system checks alone whether it could be.
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # The process is there, and somebody else's.
        pass
    return True


def _reason_of_the_disk(error: BaseException, folder: Path) -> str | None:
    """Return why a file of `folder` could not be written; None for any other error."""
    if isinstance(error, SafetensorError) and "I/O error: " in str(error):
        return _reason_of_safetensors(error)
    if not isinstance(error, OSError):
        return None

    is_of_the_folder = str(error.filename).startswith(str(folder))
    is_of_the_disk = error.errno in (*NO_ROOM, errno.EIO)
    if is_of_the_folder or is_of_the_disk:
        return error.strerror
    return None


def flush(path: Path) -> None:
    """Flush a file to the disk, or the names of the files in a folder.

    A file that was renamed stays after a loss of power only if its folder is flushed too.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, busy: str | None = None) -> Generator[None, None, None]:
    """Hold the lock of this name, which the end of the process frees; on a file system without locks, hold none.

    Args:
        path: The file that stands for the lock. It and its folder are made, and it is not removed.
        busy: The error message where another process holds the lock; None waits until the lock is free.

    Raises:
        ConfigError: If another process holds the lock. The message is `busy`.
    """
    operation = fcntl.LOCK_EX
    if busy is not None:
        operation |= fcntl.LOCK_NB

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, operation)
        except BlockingIOError:
            raise ConfigError(busy) from None
        except OSError:
            # A file system without locks, as some that are mounted over a network.
            pass
        yield


def open_regular(path: Path) -> BinaryIO:
    """Open a file that somebody else may have made; a pipe or a device is refused.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is no regular file.
    """
    # Without O_NONBLOCK the program would wait at a pipe until somebody writes into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file = open(descriptor, "rb")  # noqa: SIM115 (the caller closes it)

    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{path.name} is no regular file")
    return file


def read_regular(path: Path, most_bytes: int = 2**20) -> str:
    """Read a text file that somebody else may have made.

    Args:
        path: The file.
        most_bytes: The largest size that is read.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no regular file, too large, or no UTF-8.
    """
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"{path.name} has more than {most_bytes:,} bytes")
    return content.decode("utf-8")
