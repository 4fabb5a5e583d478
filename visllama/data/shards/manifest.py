"""A source's manifest: its shards with their counts, made of their indexes, read at start in place of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from braceexpand import braceexpand
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from visllama.console import say
from visllama.data.shards.cache import ShardCache
from visllama.data.shards.index import INDEX_VERSION, Row, ShardIndex, index_shard, lost_keys
from visllama.data.shards.remote import FetchError, check_address, is_remote
from visllama.errors import ConfigError
from visllama.files import locked, write_whole
from visllama.machine.workers import executor

MANIFEST = "manifest.json"
_SERIAL_BYTES = 2**28
"""Up to so many bytes of tars are indexed in this process: starting others takes longer."""


@dataclass
class Manifest:
    """Shards, in order.

    Attributes:
        folder: Where they lie: a folder, or an address.
        names: Each shard's path from `folder`, or its whole address.
        bytes, num_records, num_pairs, crc: Of each shard: its size, its records, the items in them (captions,
            questions, conversations), the checksum of its headers.
        kinds: Records of each kind of text.
        faults: What was found damaged, by reason.
        home: Where the indexes lie; None is beside the shards.
    """

    folder: str
    names: list[str]
    bytes: np.ndarray
    num_records: np.ndarray
    num_pairs: np.ndarray
    crc: np.ndarray
    kinds: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    home: str | None = None

    @classmethod
    def of(cls, folder: str, names: Sequence[str], rows: Sequence[Row], home: str | None = None) -> Manifest:
        """Put together the rows of shards."""
        bytes_, records, pairs, crc = np.array([row[:4] for row in rows], np.int64).reshape(-1, 4).T
        kinds, faults = Counter(), Counter()
        for row in rows:
            kinds.update(row.kinds)
            faults.update(row.faults)
        return cls(folder, list(names), bytes_, records, pairs, crc, dict(kinds), dict(faults), home)

    @property
    def sha256(self) -> str:
        """Return a hash of what the shards hold, wherever they lie."""
        digest = hashlib.sha256()
        for column in (self.bytes, self.num_records, self.num_pairs, self.crc):
            digest.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
        return digest.hexdigest()

    def shard(self, number: int) -> str:
        """Return where a shard lies."""
        name = self.names[number]
        return name if is_remote(name) else f"{self.folder}/{name}"

    def index(self, number: int) -> str:
        """Return where a shard's index lies."""
        name = self.names[number]
        if is_remote(name):  # adopted: the index lies here, the shard elsewhere, and two may have one name
            name = f"{number:06d}.tar"
        return f"{self.home or self.folder}/{name}.idx"

    def save(self) -> None:
        """Write `manifest.json`, whole or not at all."""
        columns = {name: getattr(self, name).tolist() for name in ("bytes", "num_records", "num_pairs", "crc")}
        content = {
            "index_version": INDEX_VERSION,
            "num_records": int(self.num_records.sum()),
            "kinds": self.kinds,
            "faults": self.faults,
            "shards": {"name": self.names, **columns},
        }
        write_whole(Path(self.folder) / MANIFEST, json.dumps(content))

    @classmethod
    def parse(cls, folder: str, content: str | bytes) -> Manifest:
        """Read what `save` wrote.

        Raises:
            ConfigError: If it is damaged, or of another version.
        """
        try:
            found = json.loads(content)
            if found["index_version"] != INDEX_VERSION:
                raise ValueError(f"index_version {found['index_version']}, and this program reads {INDEX_VERSION}")
            columns = {name: np.array(v, np.int64) for name, v in found["shards"].items() if name != "name"}
            manifest = cls(folder, found["shards"]["name"], **columns, kinds=found["kinds"], faults=found["faults"])
            if {len(c) for c in columns.values()} != {len(manifest.names)} or (manifest.num_records < 0).any():
                raise ValueError("its columns differ in length")
            if (manifest.num_pairs < manifest.num_records).any():
                raise ValueError("a shard of it holds fewer items than records")
            if not all(isinstance(name, str) for name in manifest.names):
                raise ValueError("a shard's name is no text")
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ConfigError(
                f"{folder}/{MANIFEST}: no manifest of shards ({error}): delete it, it is made anew"
            ) from error
        return manifest


def remote_manifest(address: str, cache: ShardCache) -> Manifest:
    """Return the manifest of a prepared folder that lies elsewhere.

    Raises:
        ConfigError: If there is none to be had.
    """
    url = f"{address.rstrip('/')}/{MANIFEST}"
    check_address(url)
    cache.path(url).unlink(missing_ok=True)  # unlike shards, which never change, it may have been written anew
    try:
        with cache.open(url, None) as file:
            return Manifest.parse(address.rstrip("/"), file.read())
    except FetchError as error:
        raise ConfigError(
            f"path={address}: {error}. A folder elsewhere is read by its {MANIFEST}, as prepare writes it; tars that "
            f"have none are adopted by visllama prepare source=shards from={address}"
        ) from error


def find_tars(pattern: str) -> list[Path]:
    """Return the local tars that a path, folder or pattern names.

    Raises:
        ConfigError: If there is none.
    """
    found: list[Path] = []
    try:
        expanded = [pattern] if Path(pattern).expanduser().exists() else list(braceexpand(pattern))
    except ValueError as error:
        raise ConfigError(f"path={pattern}: its braces do not match") from error
    for name in expanded:
        path = Path(name).expanduser()
        if path.is_dir():
            tars = sorted(path.glob("*.tar"))
        elif path.is_file():
            if path.suffix != ".tar":
                raise ConfigError(f"path={pattern}: {path} is no .tar")
            tars = [path]
        else:
            tars = sorted(path.parent.glob(path.name)) if "*" in path.name else []
        if not tars:
            raise ConfigError(f"path={pattern}: no tar at {path}{_how_to_prepare(path)}")
        found += tars
    return found


def _how_to_prepare(path: Path) -> str:
    """Return how the tars of a missing folder are made, where it is one of those that `prepare` fills; else nothing."""
    if path.name not in ("train", "val", "test"):
        return ""
    name = path.parent.name
    return f": visllama prepare writes them there, by source={name}, or by another source with name={name}"


def local_manifest(pattern: str, cache: Path, num_workers: int | None = None) -> Manifest:
    """Return the manifest of local tars; what is not indexed yet, or has changed since, is indexed now.

    Args:
        pattern: A tar, a folder of tars, or a pattern.
        cache: Where indexes go if they cannot be written beside the tars.
        num_workers: Processes that index; None is one a core.

    Raises:
        ConfigError: If there is no tar, or none that can be read.
    """
    given = Path(pattern).expanduser()
    if (given / MANIFEST).is_file():
        manifest = Manifest.parse(str(given), (given / MANIFEST).read_bytes())
        known = dict(zip(manifest.names, manifest.bytes.tolist(), strict=True))
        if _sizes(given) == {name: size for name, size in known.items() if not is_remote(name)} and all(
            os.path.exists(manifest.index(number)) for number in range(len(known))
        ):
            return manifest
    tars = [Path(os.path.abspath(tar)) for tar in find_tars(pattern)]
    folder = Path(os.path.commonpath([tar.parent for tar in tars]))
    names = [str(tar.relative_to(folder)) for tar in tars]
    home = folder if os.access(folder, os.W_OK) else cache / "index" / hashlib.sha256(str(folder).encode()).hexdigest()
    with locked(home / ".index.lock"):
        rows = index_tars(tars, [home / f"{name}.idx" for name in names], num_workers)
        manifest = Manifest.of(str(folder), names, rows, str(home))
        if given.is_dir() and home == folder:
            manifest.save()
    return manifest


def _sizes(folder: Path) -> dict[str, int]:
    with os.scandir(folder) as entries:
        tars = [entry for entry in entries if entry.name.endswith(".tar")]
        return {entry.name: entry.stat().st_size if os.path.exists(entry.path) else -1 for entry in tars}


def index_tars(tars: Sequence[Path], homes: Sequence[Path], num_workers: int | None = None) -> list[Row]:
    """Return what the indexes of tars say in all.

    An index that is not there, or is of an older state of its tar, is made and written.

    Args:
        tars: Shards on this machine.
        homes: Where each one's index lies.
        num_workers: Processes; None is one a core.

    Raises:
        ConfigError: If a tar cannot be read.
    """
    try:
        found = [_fresh(tar, home) for tar, home in zip(tars, homes, strict=True)]
        todo = [i for i, row in enumerate(found) if row is None]
        total = sum(tars[i].stat().st_size for i in todo)
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: cannot be read ({error.strerror}): is it a link whose shard was moved?"
        ) from error
    num_workers = min(num_workers or os.cpu_count() or 1, len(todo))
    jobs = [(tars[i], homes[i]) for i in todo]
    columns = TextColumn("indexing shards"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True, disable=total <= _SERIAL_BYTES) as progress:
        task = progress.add_task("", total=len(todo))
        with _pool(num_workers if total > _SERIAL_BYTES else 1) as run:
            for i, row in zip(todo, run(_index, jobs), strict=True):
                found[i] = row
                progress.advance(task)
    return found


@contextmanager
def _pool(num_workers: int) -> Iterator[Callable[[Callable, Iterable], Iterable]]:
    if num_workers <= 1:
        yield map
    else:
        with executor(num_workers) as pool:
            yield pool.map


def _fresh(tar: Path, home: Path) -> Row | None:
    try:
        index = ShardIndex.load(home) if home.is_file() else None
    except ConfigError as error:
        say(f"{error}")
        return None
    return index.row if index and index.is_of(tar) else None


def _index(job: tuple[Path, Path]) -> Row:
    tar, home = job
    try:
        before = ShardIndex.load(home) if home.is_file() else None
    except ConfigError:
        before = None
    try:
        index = index_shard(tar)
        home.parent.mkdir(parents=True, exist_ok=True)
        index.save(home)
    except OSError as error:
        raise ConfigError(f"{tar}: cannot be indexed ({error.strerror or error})") from error
    lost = lost_keys(before, index) if before else []
    if lost:
        shown = ", ".join(lost[:10]) + (", ..." if len(lost) > 10 else "")
        say(f"{tar}: changed since it was indexed: {len(lost)} of its {before.num_records} records are gone: {shown}")
    return index.row
