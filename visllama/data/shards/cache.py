"""The cache of remote shards that a node's processes share: each is downloaded once, and is there whole or not at all.

Locks are flocks, which die with their process: exclusive on `part-NAME` while a shard is downloaded, shared on an open
shard, so that nobody evicts it. The folder must lie on the node's own disk.
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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from visllama.data.shards.remote import FailedAttempt, FetchError, check_address, from_fsspec, from_http, shown
from visllama.errors import ConfigError

_CHUNK, _LONGEST_WAIT_S, _POLL_S, _TELL_EVERY_S = 2**20, 60.0, 0.1, 30.0
_HELD: set[int] = set()  # the parts that this process downloads
_log = logging.getLogger(__name__)


def _drop_held() -> None:
    """Close what the parent's threads download: a lock lives on in a forked child as long as its descriptor does."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_drop_held)


class ShardCache:
    """A folder of shards that this node's processes share.

    Args:
        folder: It is made if need be; other files in it are left alone.
        budget_bytes: What the shards may take up; None for no bound. Shards that are open stay, even above it.
        attempts: At downloading one shard, the first included.
        timeout_s: Seconds that a server may stay silent.
        backoff_s: Seconds before the second attempt; twice as many before each further one, up to a minute.
    """

    def __init__(self, folder: str | Path, budget_bytes: int | None = None, attempts: int = 5, timeout_s: float = 60.0,
                 backoff_s: float = 1.0) -> None:  # fmt: skip
        self.folder, self.budget_bytes, self.attempts = Path(folder), budget_bytes, attempts
        self.timeout_s, self.backoff_s = timeout_s, backoff_s
        self._began_ns, self._warned = time.time_ns(), False
        with self._disk("the cache"):
            self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, url: str) -> Path:
        """Return the place of a shard, whether it is there or not; two addresses never share one."""
        name = re.sub(r"[^A-Za-z0-9._-]", "_", re.sub(r"[?#].*", "", url, flags=re.DOTALL).rpartition("/")[2])[-100:]
        return self.folder / f"{hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()[:16]}-{name}"

    def open(self, url: str, size: int | None) -> BinaryIO:
        """Open a shard for reading, downloaded first if it is not there; nobody evicts it until the file is closed.

        Args:
            url: Its address.
            size: Its bytes, as the index has them; None if unknown.

        Raises:
            ConfigError: The address is refused, or a package is missing.
            FetchError: It could not be downloaded.
        """
        file = self._get(url, size)
        self._touch(file, time.time_ns())
        return file

    def fetch(self, url: str, size: int | None, stop: threading.Event | None = None) -> None:
        """Make sure that a shard is there; like `open`, but for `stop`, which ends it with a `FetchError`."""
        with self._get(url, size, stop) as file:
            self._touch(file, os.fstat(file.fileno()).st_atime_ns)

    def prefetch(self, shards: Iterable[tuple[str, int | None]]) -> Prefetch:
        """Fetch shards in this order in the background, as far ahead of the readers as the budget allows.

        Args:
            shards: Address and bytes of each. The next one is asked for when the last is there, so a generator may
                leave out what its readers have passed.
        """
        thread = Prefetch(self, shards)
        thread.start()
        return thread

    def ahead(self) -> int:
        """Return the number of bytes that were fetched ahead, or are being fetched, and that nobody has opened."""
        return sum(info.st_size for path, info in self._files() if self._is_ahead(path, info))

    def has(self, url: str, size: int | None) -> bool:
        """Return whether a shard is there, with this many bytes."""
        with suppress(FileNotFoundError):
            return self.path(url).stat().st_size == size or size is None
        return False

    def _touch(self, file: BinaryIO, accessed_ns: int) -> None:
        with suppress(PermissionError):  # another user's file: readable, and merely not the most recently used
            os.utime(file.fileno(), ns=(accessed_ns, time.time_ns()))

    def _is_ahead(self, path: Path, info: os.stat_result) -> bool:
        unread = info.st_atime_ns == 0 or path.name.startswith("part-")
        return unread and info.st_mtime_ns >= self._began_ns

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for entry in os.scandir(self.folder):
            if re.match(r"(part-)?[0-9a-f]{16}-", entry.name):
                with suppress(FileNotFoundError):
                    yield Path(entry.path), entry.stat(follow_symlinks=False)

    @contextmanager
    def _disk(self, url: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FetchError(f"{shown(url)}: cannot be stored in {self.folder}: {error.strerror}; make room there, "
                             "lower data.cache_gib, or name another folder") from error  # fmt: skip

    def _get(self, url: str, size: int | None, stop: threading.Event | None = None) -> BinaryIO:
        check_address(url)
        whole, told = self.path(url), time.monotonic()
        part = whole.with_name(f"part-{whole.name}")
        while True:
            with suppress(FileNotFoundError):
                file = open(whole, "rb")  # noqa: SIM115 - the caller closes it
                fcntl.flock(file, fcntl.LOCK_SH)
                if size in (None, os.fstat(file.fileno()).st_size):
                    return file  # should it be evicted just now, its bytes stay readable
                file.close()  # the shard changed since, and has a new index: it will be replaced
            with self._disk(url):
                fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            _HELD.add(fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                try:
                    if _is_at(fd, part) and not self.has(url, size):
                        self._download(url, size, fd, stop)
                        os.replace(part, whole)
                        file = open(whole, "rb")  # noqa: SIM115 - before the lock goes, lest it be evicted
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

    def _download(self, url: str, size: int | None, fd: int, stop: threading.Event | None) -> None:
        source = from_http if url.partition(":")[0] in ("http", "https") else from_fsspec
        got, stamp, stop = 0, (), stop or threading.Event()
        for attempt in range(1, self.attempts + 1):
            try:
                with source(url, got, stamp, self.timeout_s) as (read, got, total, stamp):
                    want = total if size is None else size
                    if want == -1:
                        raise FailedAttempt("the server does not tell its length", "use one that does", final=True)
                    if total not in (None, -1, want):
                        what = f"it has {total} bytes at the server and {size} in the index"
                        raise FailedAttempt(what, "if it changed, make its index again", restart=True)
                    with self._disk(url):
                        self._make_room(want or 0, fd)
                    while (want is None or got <= want) and (chunk := read(_CHUNK)):
                        if stop.is_set():
                            raise FailedAttempt("stopped", final=True)
                        with self._disk(url):
                            _write(fd, chunk, got)
                        got += len(chunk)
                if want not in (None, got):
                    raise FailedAttempt(f"{got} bytes came, and it has {want}", restart=got > want)
                with self._disk(url):
                    os.ftruncate(fd, got)
                    os.utime(fd, ns=(0, time.time_ns()))  # accessed never: see `ahead`
                    os.fsync(fd)
                return
            except (ConfigError, FetchError):
                raise
            except Exception as error:  # fsspec's file systems raise what they like
                fault = error if isinstance(error, FailedAttempt) else FailedAttempt(f"{type(error).__name__}: {error}")
            if fault.final or attempt == self.attempts:
                do = fault.remedy or "check the network and the server, then resume the run"
                raise FetchError(f"{shown(url)}: {shown(str(fault))} (attempt {attempt} of {self.attempts}); {do}")
            got = 0 if fault.restart else got
            wait_s = min(self.backoff_s * 2 ** (attempt - 1), _LONGEST_WAIT_S) * random.SystemRandom().uniform(0.5, 1)
            wait_s = max(wait_s, min(fault.wait_s, _LONGEST_WAIT_S))  # SystemRandom: training's own stays as it is
            _log.warning("%s: %s; again in %.1f s", shown(url), shown(str(fault)), wait_s)
            stop.wait(wait_s)

    def _make_room(self, need: int, fd: int) -> None:
        """Evict until `need` bytes fit, the least recently used first, and reserve them in the part `fd`."""
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            files = [(path, info) for path, info in self._files() if info.st_ino != os.fstat(fd).st_ino]
            used, budget = sum(info.st_size for _, info in files), self.budget_bytes
            # First what killed downloads left, then what was read, at last what was fetched ahead and is still to come.
            files.sort(key=lambda f: (not f[0].name.startswith("part-"), self._is_ahead(*f), f[1].st_mtime_ns))
            for path, info in files:
                full = budget is not None and used + need > budget
                if (full or path.name.startswith("part-")) and _evict(path):
                    used -= info.st_size
            if budget is not None and used + need > budget and not self._warned:
                self._warned = True
                _log.warning("the shards in use take %.2f GiB, more than data.cache_gib=%.2f: raise it",
                             (used + need) / 2**30, budget / 2**30)  # fmt: skip
            if need:
                os.ftruncate(fd, need)
        finally:
            _unlock(lock)


class Prefetch(threading.Thread):
    """Shards being fetched in the background.

    Attributes:
        errors: What went wrong, by the shard's address; whoever opens that shard gets an error of their own.
    """

    def __init__(self, cache: ShardCache, shards: Iterable[tuple[str, int | None]]) -> None:
        super().__init__(name="prefetch", daemon=True)
        self.errors: dict[str, Exception] = {}
        self._cache, self._shards, self._halt = cache, shards, threading.Event()

    def run(self) -> None:
        """Fetch one shard after the other; wait while what nobody has read yet fills the budget."""
        cache = self._cache
        for url, size in self._shards:
            while cache.budget_bytes is not None and not cache.has(url, size):
                if self._halt.is_set() or not (ahead := cache.ahead()) or ahead + (size or 0) <= cache.budget_bytes:
                    break
                self._halt.wait(2 * _POLL_S)
            if self._halt.is_set():
                return
            try:
                cache.fetch(url, size, self._halt)
            except Exception as error:
                self.errors[url] = error.with_traceback(None)

    def stop(self, timeout_s: float | None = None) -> None:
        """End after the bytes on their way now, and wait for it this many seconds; None for as long as it takes."""
        self._halt.set()
        self.join(timeout_s)


def _write(fd: int, chunk: bytes, offset: int) -> None:
    view = memoryview(chunk)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def _is_at(fd: int, path: Path) -> bool:
    """Return whether the open file is the one of this name, and not one that was removed or renamed."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _unlock(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_UN)  # closing alone would leave the lock to a child that was forked meanwhile
    os.close(fd)


def _evict(path: Path) -> bool:
    """Remove a file unless somebody has it open."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if free := _is_at(fd, path):
            os.unlink(path)
        return free
    except OSError:
        return False
    finally:
        _unlock(fd)
