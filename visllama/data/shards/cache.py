"""Keep remote shards in a folder that a machine's processes share: each is downloaded once, whole or not at all.

A shard is stored under a NAME made of its URL, and as `part-NAME` while it is downloaded. Locks are flocks, which die
with their process: exclusive on `part-NAME` while a shard is downloaded, shared on an open shard, so that nobody
removes it. The folder must lie on the machine's own disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import random
import re
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from visllama.data.shards.remote import FailedAttempt, FetchError, check_address, from_fsspec, from_http, shown
from visllama.errors import ConfigError

_CHUNK = 2**20
_LONGEST_WAIT_S = 60.0
_POLL_S = 0.1
_TELL_EVERY_S = 30.0
_HELD: set[int] = set()
"""The file descriptors of the parts (incomplete shards) that this process is downloading."""
_log = logging.getLogger(__name__)


def _drop_held() -> None:
    """Close the parent's part files in a forked child: a lock lives on as long as any descriptor of it is open."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_drop_held)


class ShardCache:
    """A folder of downloaded shards that the processes of this machine share.

    Args:
        folder: The folder that holds the shards, on the machine's own disk. It is made if need be; other files in it
            are left alone.
        budget_bytes: Bytes that the shards may take up: before a download, the least recently used shards are removed
            until the new one fits. None is no bound. Shards that are open are never removed, even above the bound.
        attempts: Number of attempts at downloading one shard, the first included.
        timeout_s: Seconds that an HTTP server may stay silent.
        backoff_s: Seconds before the second attempt, shortened at random by up to a half; twice as many before each
            further one, up to a minute.

    Raises:
        FetchError: If the folder cannot be made.
    """

    def __init__(
        self,
        folder: str | Path,
        budget_bytes: int | None = None,
        attempts: int = 5,
        timeout_s: float = 60.0,
        backoff_s: float = 1.0,
    ) -> None:
        self.folder = Path(folder)
        self.budget_bytes = budget_bytes
        self.attempts = attempts
        self.timeout_s = timeout_s
        self.backoff_s = backoff_s

        self._began_ns = time.time_ns()
        self._warned = False

        with self._disk("the cache"):
            self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, url: str) -> Path:
        """Return the path in the cache that belongs to a URL, whether the shard is there or not."""
        digest = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()[:16]
        without_query = re.sub(r"[?#].*", "", url, flags=re.DOTALL)
        _, _, name = without_query.rpartition("/")
        # The name is for human readers alone: the hash of the whole address tells shards apart.
        readable = re.sub(r"[^A-Za-z0-9._-]", "_", name)[-100:]
        return self.folder / f"{digest}-{readable}"

    def open(self, url: str, size: int | None) -> BinaryIO:
        """Return a shard as a file open for reading bytes, downloaded first if it is not in the cache.

        The caller must close the file, for instance by `with`; until then, the shard is not removed from the cache.

        Args:
            url: The shard's URL.
            size: The shard's size in bytes, as its manifest has it; a stored shard of another size is downloaded anew.
                None if it is not known.

        Raises:
            ConfigError: If the URL is not one that may be opened, or the package for it is not installed.
            FetchError: If the shard could not be downloaded or stored.
        """
        file = self._get(url, size)
        self._touch(file, time.time_ns())
        return file

    def fetch(self, url: str, size: int | None, stop: threading.Event | None = None) -> None:
        """Download a shard into the cache unless it is there; another download may remove it again later.

        Args:
            url: The shard's URL.
            size: The shard's size in bytes, as its manifest has it; a stored shard of another size is downloaded anew.
                None if it is not known.
            stop: Ends the download once it is set; None downloads to the end.

        Raises:
            ConfigError: If the URL is not one that may be opened, or the package for it is not installed.
            FetchError: If the shard could not be downloaded or stored, or `stop` was set.
        """
        with self._get(url, size, stop) as file:
            # Nobody has read it: the time of access stays.
            self._touch(file, os.fstat(file.fileno()).st_atime_ns)

    def prefetch(self, shards: Iterable[tuple[str, int | None]]) -> Prefetch:
        """Start a thread that downloads shards one after the other, and return the thread at once.

        The thread waits while shards that were downloaded and that nobody has opened fill `budget_bytes`. If a download
        fails, the thread keeps the exception in `errors`, by the shard's URL, and continues with the next shard. Its
        method `stop` ends it.

        Args:
            shards: The URL and the size in bytes (None if not known) of each shard, in the order of the downloads. The
                thread takes one entry at a time, when the download before it has ended: a generator can still decide
                then which shard comes next.
        """
        thread = Prefetch(self, shards)
        thread.start()
        return thread

    def ahead(self) -> int:
        """Return how many bytes the shards have that nobody has opened for reading yet, incomplete downloads included.

        Only shards downloaded since this ShardCache was made count, by any process of this machine.
        """
        sizes = [info.st_size for path, info in self._files() if self._is_ahead(path, info)]
        return sum(sizes)

    def has(self, url: str, size: int | None) -> bool:
        """Return whether the cache holds a shard as a whole; nothing is downloaded.

        Args:
            url: The shard's URL.
            size: The size in bytes that a stored shard must have; None accepts any size.
        """
        with suppress(FileNotFoundError):
            stored_size = self.path(url).stat().st_size
            return size is None or stored_size == size
        return False

    def _touch(self, file: BinaryIO, accessed_ns: int) -> None:
        """Mark a shard as the most recently used one, by its time of modification."""
        # The file of another user can be read, and is merely not the most recently used one.
        with suppress(PermissionError):
            os.utime(file.fileno(), ns=(accessed_ns, time.time_ns()))

    def _is_ahead(self, path: Path, info: os.stat_result) -> bool:
        """Return whether a shard was downloaded since this cache was made, and nobody has read it."""
        unread = info.st_atime_ns == 0 or path.name.startswith("part-")
        return unread and info.st_mtime_ns >= self._began_ns

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield the cache's shards and parts; another process may remove them meanwhile."""
        for entry in os.scandir(self.folder):
            if re.match(r"(part-)?[0-9a-f]{16}-", entry.name):
                with suppress(FileNotFoundError):
                    yield Path(entry.path), entry.stat(follow_symlinks=False)

    @contextmanager
    def _disk(self, url: str) -> Generator[None, None, None]:
        """Turn an `OSError` inside `with` into a `FetchError` that blames the cache's disk."""
        try:
            yield
        except OSError as error:
            raise FetchError(
                f"{shown(url)}: cannot be stored in {self.folder}: {error.strerror}; make room there, "
                "lower data.cache_gib, or name another folder"
            ) from error

    def _get(self, url: str, size: int | None, stop: threading.Event | None = None) -> BinaryIO:
        """Return a shard's file, open and locked for sharing; download the shard, or wait for the process that does."""
        check_address(url)
        whole = self.path(url)
        part = whole.with_name(f"part-{whole.name}")
        told = time.monotonic()
        while True:
            file = self._open_whole(whole, size)
            if file is not None:
                return file

            with self._disk(url):
                fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            _HELD.add(fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                try:
                    # Between opening and locking, another process may have finished, or removed the part.
                    if _is_at(fd, part) and not self.has(url, size):
                        self._download(url, size, fd, stop)
                        os.replace(part, whole)
                        # Opened and locked before the part's lock goes, lest it be evicted.
                        file = open(whole, "rb")  # noqa: SIM115 - the caller closes it
                        fcntl.flock(fd, fcntl.LOCK_SH)
                        fcntl.flock(file, fcntl.LOCK_SH)
                        return file
                finally:
                    if _is_at(fd, part):
                        os.unlink(part)
            except BlockingIOError:
                if time.monotonic() > told + _TELL_EVERY_S:
                    told = time.monotonic()
                    _log.warning("waiting for another process of this node that downloads %s", shown(url))
                if stop is not None and stop.is_set():
                    raise FetchError(f"{shown(url)}: stopped") from None
                time.sleep(_POLL_S)
            finally:
                _HELD.discard(fd)
                _unlock(fd)

    def _open_whole(self, whole: Path, size: int | None) -> BinaryIO | None:
        """Return the file of a shard that is there, with a shared lock on it; None where it has to be downloaded."""
        try:
            file = open(whole, "rb")  # noqa: SIM115 - the caller closes it
        except FileNotFoundError:
            return None

        fcntl.flock(file, fcntl.LOCK_SH)
        stored_size = os.fstat(file.fileno()).st_size
        if size is None or stored_size == size:
            # Should it be evicted just now, its bytes stay readable.
            return file
        # The shard changed since it was fetched, and has a new index: it is replaced.
        file.close()
        return None

    def _download(self, url: str, size: int | None, fd: int, stop: threading.Event | None) -> None:
        """Download a shard into the open part file `fd`, by several attempts if need be.

        Raises:
            ConfigError: A package is missing.
            FetchError: No attempt succeeded, `stop` was set, or the disk is full.
        """
        stop = stop or threading.Event()
        progress = _Progress()
        for attempt in range(1, self.attempts + 1):
            try:
                self._attempt(url, size, fd, stop, progress)
                return
            except ConfigError:
                raise
            except FailedAttempt as error:
                failure = error
            except Exception as error:  # fsspec's file systems raise what they like
                failure = FailedAttempt(f"{type(error).__name__}: {error}")

            if failure.final or attempt == self.attempts:
                remedy = failure.remedy or "check the network and the server, then resume the run"
                raise FetchError(
                    f"{shown(url)}: {shown(str(failure))} (attempt {attempt} of {self.attempts}); {remedy}"
                )
            if failure.restart:
                progress.num_bytes = 0

            # SystemRandom, so that the random draws of the training stay what they are.
            jitter = random.SystemRandom().uniform(0.5, 1)
            wait_s = min(self.backoff_s * 2 ** (attempt - 1), _LONGEST_WAIT_S) * jitter
            wait_s = max(wait_s, min(failure.wait_s, _LONGEST_WAIT_S))
            _log.warning("%s: %s; again in %.1f s", shown(url), shown(str(failure)), wait_s)
            stop.wait(wait_s)

    def _attempt(self, url: str, size: int | None, fd: int, stop: threading.Event, progress: _Progress) -> None:
        """Try once to download what is missing of a shard.

        Raises:
            FailedAttempt: If not all bytes came.
        """
        scheme, _, _ = url.partition(":")
        source = from_http if scheme in ("http", "https") else from_fsspec
        with source(url, progress.num_bytes, progress.stamp, self.timeout_s) as (read, first, total, stamp):
            # The server may have started at another byte than was asked for.
            progress.num_bytes = first
            progress.stamp = stamp

            wanted = total if size is None else size
            if wanted == -1:
                raise FailedAttempt("the server does not tell its length", "use one that does", final=True)
            if total not in (None, -1, wanted):
                problem = f"it has {total} bytes at the server and {size} in the index"
                raise FailedAttempt(problem, "if it changed, make its index again", restart=True)
            with self._disk(url):
                self._make_room(wanted or 0, fd)

            # One chunk more than is wanted shows that the server sends too much.
            while wanted is None or progress.num_bytes <= wanted:
                chunk = read(_CHUNK)
                if not chunk:
                    break
                if stop.is_set():
                    raise FailedAttempt("stopped", final=True)
                with self._disk(url):
                    _write(fd, chunk, progress.num_bytes)
                progress.num_bytes += len(chunk)

        num_bytes = progress.num_bytes
        if wanted is not None and num_bytes != wanted:
            raise FailedAttempt(f"{num_bytes} bytes came, and it has {wanted}", restart=num_bytes > wanted)
        with self._disk(url):
            os.ftruncate(fd, num_bytes)
            # A time of access of zero says that nobody has read it: see `ahead`.
            os.utime(fd, ns=(0, time.time_ns()))
            os.fsync(fd)

    def _make_room(self, need: int, fd: int) -> None:
        """Remove shards until `need` bytes fit, the least recently used first, and reserve them in the file `fd`."""
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            own_inode = os.fstat(fd).st_ino
            files = [(path, info) for path, info in self._files() if info.st_ino != own_inode]
            files.sort(key=lambda file: self._eviction_key(*file))
            used = sum(info.st_size for _, info in files)
            budget = self.budget_bytes

            for path, info in files:
                is_full = budget is not None and used + need > budget
                # Parts that nobody holds are what killed downloads left.
                if (is_full or path.name.startswith("part-")) and _evict(path):
                    used -= info.st_size

            if budget is not None and used + need > budget and not self._warned:
                self._warned = True
                _log.warning(
                    "the shards in use take %.2f GiB, more than data.cache_gib=%.2f: raise it",
                    (used + need) / 2**30,
                    budget / 2**30,
                )
            if need:
                os.ftruncate(fd, need)
        finally:
            _unlock(lock)

    def _eviction_key(self, path: Path, info: os.stat_result) -> tuple[bool, bool, int]:
        """Return the sort key by which files are removed, lowest first.

        First come the parts that killed downloads left, then what was read, the least recently used first, and at last
        what was fetched ahead and is still to come.
        """
        is_whole = not path.name.startswith("part-")
        return is_whole, self._is_ahead(path, info), info.st_mtime_ns


@dataclass
class _Progress:
    """How far the download of a shard has come.

    Attributes:
        num_bytes: The bytes that are there, from the shard's start.
        stamp: The stamp of the content to which they belong.
    """

    num_bytes: int = 0
    stamp: tuple = ()


class Prefetch(threading.Thread):
    """A thread that downloads shards into a cache, one after the other; `ShardCache.prefetch` makes and starts it.

    Args:
        cache: The cache.
        shards: The URL and the size in bytes (None if not known) of each shard, in the order of the downloads.

    Attributes:
        errors: The error of each shard that could not be downloaded, by its URL. The thread continues with the next
            shard; `ShardCache.open` on the failed one tries the download again, and raises if that fails too.
    """

    def __init__(self, cache: ShardCache, shards: Iterable[tuple[str, int | None]]) -> None:
        super().__init__(name="prefetch", daemon=True)
        self.errors: dict[str, Exception] = {}
        self._cache = cache
        self._shards = shards
        self._halt = threading.Event()

    def run(self) -> None:
        """Download one shard after the other, and wait while unread ones fill the budget; `start` calls this."""
        for url, size in self._shards:
            while not self._halt.is_set() and not self._has_room(url, size):
                self._halt.wait(2 * _POLL_S)
            if self._halt.is_set():
                return

            try:
                self._cache.fetch(url, size, self._halt)
            except Exception as error:
                # Without its frames, which would keep everything in them alive.
                self.errors[url] = error.with_traceback(None)

    def _has_room(self, url: str, size: int | None) -> bool:
        """Return whether the budget allows to fetch a shard now, beside what was fetched ahead and is unread."""
        cache = self._cache
        if cache.budget_bytes is None or cache.has(url, size):
            return True
        ahead = cache.ahead()
        # With nothing ahead, even a shard that is larger than the budget is fetched: its reader needs it next.
        return ahead == 0 or ahead + (size or 0) <= cache.budget_bytes

    def stop(self, timeout_s: float | None = None) -> None:
        """End the downloads, the one under way after its current chunk, and wait for the thread to end.

        Args:
            timeout_s: The most seconds to wait; 0 does not wait, None waits for as long as it takes.
        """
        self._halt.set()
        self.join(timeout_s)


def _write(fd: int, chunk: bytes, offset: int) -> None:
    view = memoryview(chunk)
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count


def _is_at(fd: int, path: Path) -> bool:
    """Return whether an open file is still the one at this path, and was not removed, renamed or replaced."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _unlock(fd: int) -> None:
    # Closing alone would leave the lock to a child that was forked meanwhile.
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _evict(path: Path) -> bool:
    """Remove a file unless somebody has it open; return whether it was removed."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False

    try:
        # Whoever reads a shard, or downloads a part, holds a lock on it: then this one fails at once.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(fd, path):
            return False
        os.unlink(path)
        return True
    except OSError:
        return False
    finally:
        _unlock(fd)
