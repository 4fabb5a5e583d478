"""Write files and folders whole or not at all, hold locks on files, and read files that somebody else may have made."""

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
"""The `errno`s of a disk that is full, a quota that is used up, and a file that is too large for the file system."""


class WriteFailed(ConfigError):
    """Raised when a file or folder could not be written.

    No half-written file or folder is left at `path`, and a file that stood there before is unchanged.

    Args:
        path: The path that could not be written.
        reason: Why it could not be written, for example "No space left on device".

    Attributes:
        path: The path that could not be written.
        reason: Why it could not be written.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: cannot be written ({self.reason})"


@contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """Write a file whole or not at all: inside `with replacing(path) as temporary:`, write to `temporary`.

    When the block ends, the temporary file takes the place of `path`, also where a file is there already. Where the
    block raises an error, the temporary file is removed and `path` is as it was.

    Args:
        path: The file to write. Its folder has to exist.

    Yields:
        The path of an empty file in the same folder.

    Raises:
        WriteFailed: If the file cannot be written. Any other error of the block is raised unchanged.
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
        reason = _reason_of_the_disk(error, temporary)
        if reason is not None:
            raise WriteFailed(path, reason) from error
        raise


def write_whole(path: Path, content: str) -> None:
    """Write a UTF-8 text file whole or not at all, whatever ends the program meanwhile.

    Args:
        path: The file; one that is there is replaced. Its folder has to exist.
        content: The whole text.

    Raises:
        WriteFailed: If the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


@contextmanager
def new_folder(path: Path) -> Generator[Path, None, None]:
    """Make a folder whole or not at all: inside `with new_folder(path) as temporary:`, fill `temporary`, not `path`.

    When the block ends, the temporary folder is renamed to `path`. Where the block raises an error, it is removed.
    Temporary folders that killed processes have left beside `path` are removed first.

    Args:
        path: The folder to make: not there yet, or empty. Folders above it are made too.

    Yields:
        The path of an empty folder beside `path`.

    Raises:
        ConfigError: If there is a file or a folder with files at `path` already.
        WriteFailed: If the folder cannot be written. Any other error of the block is raised unchanged.
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
    """Check that nothing is at `path`, or an empty folder; nothing is made.

    Raises:
        ConfigError: If a file or a folder with files is there.
    """
    if not path.exists():
        return
    is_empty_folder = path.is_dir() and not any(path.iterdir())
    if not is_empty_folder:
        raise ConfigError(f"{path}: something is there already: name a new folder, or remove that one")


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary folders of `path` whose process has ended."""
    name = glob.escape(path.name)
    for abandoned in path.parent.glob(f".{name}.*.partial"):
        _, process_id, _ = abandoned.name.rsplit(".", 2)
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


def _reason_of_the_disk(error: BaseException, written: Path) -> str | None:
    """Return why a file, or a file inside a folder, could not be written; None for an error of anything else.

    Args:
        error: What was raised while the file or folder was written.
        written: The file or folder.
    """
    # safetensors raises a type of its own, which has the words of the operating system in its message.
    if isinstance(error, SafetensorError):
        _, io_error, words = str(error).rpartition("I/O error: ")
        reason, _, _ = words.partition(" (os error")
        return reason if io_error else None
    if not isinstance(error, OSError):
        return None

    is_of_the_disk = error.errno in (*NO_ROOM, errno.EIO)
    is_of_the_path = str(error.filename).startswith(str(written))
    if is_of_the_disk or is_of_the_path:
        return error.strerror or str(error)
    return None


def flush(path: Path) -> None:
    """Flush a file's content, or the list of the files in a folder, from the system's cache to the disk.

    A file that was renamed keeps its new name after a loss of power only if its folder is flushed too.

    Args:
        path: The file or folder, which has to exist.

    Raises:
        OSError: If it cannot be opened or flushed.
    """
    # A folder can be opened for reading alone, which is enough to flush it.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, busy: str | None = None) -> Generator[None, None, None]:
    """Hold a lock while the block of a `with` runs, so that no other process runs such a block at the same time.

    The lock is also freed when the process ends. On a file system without locks the block runs without one.

    Args:
        path: The file that stands for the lock. It and its folder are made if needed, and the file is not removed.
        busy: The error message for the case that another process holds the lock; None waits until the lock is free.

    Raises:
        ConfigError: If `busy` is given and another process holds the lock. The message is `busy`.
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
    """Open a file for reading in binary, and return it; the caller closes it.

    This is for files that somebody else may have made: a pipe, at which a reader could wait forever, is refused.

    Raises:
        OSError: If the file is not there, cannot be opened, or is a folder.
        ValueError: If it is a pipe or a device, not a regular file.
    """
    # Without O_NONBLOCK the program would wait at a pipe until somebody writes into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        file = open(descriptor, "rb")  # noqa: SIM115 (the caller closes it)
    except OSError:  # it is a folder
        os.close(descriptor)
        raise

    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{path.name} is no regular file")
    return file


def read_regular(path: Path, most_bytes: int = 2**20) -> str:
    """Return the whole text of a UTF-8 file that somebody else may have made.

    Args:
        path: The file.
        most_bytes: The largest size of a file that is read, in bytes.

    Raises:
        OSError: If the file is not there, cannot be read, or is a folder.
        ValueError: If it is a pipe or a device, has more bytes than `most_bytes`, or is no UTF-8.
    """
    with open_regular(path) as file:
        # One byte more, so that a file which is too large is known from one of just that size.
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"{path.name} has more than {most_bytes:,} bytes")
    return content.decode("utf-8")
