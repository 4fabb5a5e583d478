"""Make, save and load manifests: a manifest lists the shards (tars of records) of a source, with their counts.

It is made of the shards' indexes, and read in place of them when a run starts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
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
"""The name of a folder's manifest."""
_SERIAL_BYTES = 2**28
"""Tars of at most this many bytes in all are indexed in this process: starting others takes longer."""
_COLUMNS = ("bytes", "num_records", "num_pairs", "crc")


@dataclass
class Manifest:
    """The shards of a source, in order.

    Attributes:
        folder: Where the shards lie: the path of a folder, or its URL.
        names: Each shard's path from `folder`, or its whole URL.
        bytes: Each shard's size in bytes.
        num_records: The number of records in each shard.
        num_pairs: The number of items (captions, questions, conversations) in each shard.
        crc: The checksum of each shard's headers and texts.
        kinds: The number of records of each kind of text, as "captions", over all shards.
        faults: The number of damaged places and unusable records by reason, over all shards.
        home: The folder in which the indexes lie; None is `folder`.
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
        """Build a manifest from the row of each shard; nothing is read or written.

        Args:
            folder: Where the shards lie: the path of a folder, or its URL.
            names: Each shard's path from `folder`, or its whole URL.
            rows: The size, counts and checksum of each shard, in the order of `names`.
            home: The folder in which the indexes lie; None is `folder`.
        """
        numbers = [row[: len(_COLUMNS)] for row in rows]
        # Shaped by hand: an empty list of rows would have no columns to unpack.
        num_bytes, num_records, num_pairs, crc = np.array(numbers, np.int64).reshape(-1, len(_COLUMNS)).T

        kinds: Counter[str] = Counter()
        faults: Counter[str] = Counter()
        for row in rows:
            kinds.update(row.kinds)
            faults.update(row.faults)
        return cls(folder, list(names), num_bytes, num_records, num_pairs, crc, dict(kinds), dict(faults), home)

    @property
    def sha256(self) -> str:
        """A hash, in hex digits, of the shards' sizes, counts and checksums in their order, but not of their names."""
        digest = hashlib.sha256()
        for column in (self.bytes, self.num_records, self.num_pairs, self.crc):
            # Of one byte order, so that every machine has the same hash.
            digest.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
        return digest.hexdigest()

    def shard(self, number: int) -> str:
        """Return the path or the URL of a shard, given by its number in the manifest, from 0.

        Raises:
            IndexError: If the number is too large.
        """
        name = self.names[number]
        if is_remote(name):
            return name
        return f"{self.folder}/{name}"

    def index(self, number: int) -> str:
        """Return the path or the URL of a shard's index, given by the shard's number in the manifest, from 0.

        It is the place where the index belongs: whether a file is there is not checked.

        Raises:
            IndexError: If the number is too large.
        """
        name = self.names[number]
        if is_remote(name):
            # An adopted shard lies elsewhere, its index here; and shards of two folders may have the same name.
            name = f"{number:06d}.tar"
        return f"{self.home or self.folder}/{name}.idx"

    def save(self) -> None:
        """Write `manifest.json` into `folder`, which must be local, whole or not at all; `home` is not stored.

        Raises:
            WriteFailed: If the file cannot be written.
        """
        columns = {name: getattr(self, name).tolist() for name in _COLUMNS}
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
        """Return the manifest that the content of a `manifest.json` holds; no file is read.

        Args:
            folder: Where the shards lie: the path of a folder, or its URL.
            content: What `save` wrote.

        Raises:
            ConfigError: If the content is damaged, or of another version.
        """
        try:
            stored = json.loads(content)
            version = stored["index_version"]
            if version != INDEX_VERSION:
                raise ValueError(f"index_version {version}, and this program reads {INDEX_VERSION}")

            columns = {name: np.array(values, np.int64) for name, values in stored["shards"].items() if name != "name"}
            if columns.keys() != set(_COLUMNS):
                raise ValueError(f"its columns are {', '.join(columns)}, and should be {', '.join(_COLUMNS)}")
            manifest = cls(
                folder,
                stored["shards"]["name"],
                bytes=columns["bytes"],
                num_records=columns["num_records"],
                num_pairs=columns["num_pairs"],
                crc=columns["crc"],
                kinds=stored["kinds"],
                faults=stored["faults"],
            )

            # It may come from another machine: what is wrong has to show here, and not at some record hours later.
            lengths = {len(column) for column in columns.values()}
            if lengths != {len(manifest.names)} or (manifest.num_records < 0).any():
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
    """Download the manifest of a folder on another machine, and return it; it is downloaded anew at each call.

    Args:
        address: The URL of the folder, as "s3://bucket/folder".
        cache: Downloads the manifest, and keeps it among its shards.

    Raises:
        ConfigError: If the URL is not one that may be opened, or the manifest cannot be downloaded or is damaged.
    """
    url = f"{address.rstrip('/')}/{MANIFEST}"
    check_address(url)
    # Unlike shards, which never change, it may have been written anew.
    cache.path(url).unlink(missing_ok=True)

    try:
        with cache.open(url, None) as file:
            return Manifest.parse(address.rstrip("/"), file.read())
    except FetchError as error:
        raise ConfigError(
            f"path={address}: {error}. A folder elsewhere is read by its {MANIFEST}, as prepare writes it; tars that "
            f"have none are adopted by visllama prepare source=shards from={address}"
        ) from error


def find_tars(pattern: str) -> list[Path]:
    """Return the paths of the local tars that a path or a pattern names.

    Args:
        pattern: A tar, a folder of tars, or a pattern with braces or, in its last part, a star: `a/{00..11}.tar`,
            `a/*.tar`. What the braces expand to keeps their order; tars of one folder or star are sorted by name.

    Raises:
        ConfigError: If a name that the braces expand to has no tar, a file is no `.tar`, or braces do not match.
    """
    all_tars: list[Path] = []
    try:
        # The name of a file that is there may hold braces.
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
        elif "*" in path.name:
            tars = sorted(path.parent.glob(path.name))
        else:
            tars = []

        if not tars:
            raise ConfigError(f"path={pattern}: no tar at {path}{_how_to_prepare(path)}")
        all_tars += tars
    return all_tars


def _how_to_prepare(path: Path) -> str:
    """Return the end of a message that says how `prepare` makes a missing folder; empty where it makes none like it."""
    if path.name not in ("train", "val", "test"):
        return ""
    name = path.parent.name
    return f": visllama prepare writes them there, by source={name}, or by another source with name={name}"


def local_manifest(pattern: str, cache: Path, num_workers: int | None = None) -> Manifest:
    """Return the manifest of local tars; index those that are not indexed yet or have changed, and write their indexes.

    A folder whose `manifest.json` is up to date is not indexed. The manifest of a whole folder that can be written to
    is saved there.

    Args:
        pattern: A tar, a folder of tars, or a pattern: `a/{00000..00011}.tar`, `a/*.tar`.
        cache: The folder for indexes where the tars' own folder cannot be written to.
        num_workers: Number of processes that index; None is one for each core.

    Raises:
        ConfigError: If there is no tar, a tar cannot be read, an index cannot be written, or the folder's
            `manifest.json` is damaged.
    """
    path = Path(pattern).expanduser()
    if (path / MANIFEST).is_file():
        manifest = Manifest.parse(str(path), (path / MANIFEST).read_bytes())
        if _is_up_to_date(manifest, path):
            return manifest

    tars = [Path(os.path.abspath(tar)) for tar in find_tars(pattern)]
    folder = Path(os.path.commonpath([tar.parent for tar in tars]))
    names = [str(tar.relative_to(folder)) for tar in tars]

    home = folder
    if not os.access(folder, os.W_OK):
        # A folder of its own in the cache: tars of two folders may have the same name.
        home = cache / "index" / hashlib.sha256(str(folder).encode()).hexdigest()
    # Several processes may start on the same tars: the first indexes them, the others find the indexes.
    with locked(home / ".index.lock"):
        rows = index_tars(tars, [home / f"{name}.idx" for name in names], num_workers)
        manifest = Manifest.of(str(folder), names, rows, str(home))
        # A pattern or a single tar may leave out tars of the folder, which the folder's manifest may not.
        if path.is_dir() and home == folder:
            manifest.save()
    return manifest


def _is_up_to_date(manifest: Manifest, folder: Path) -> bool:
    """Return whether a folder's tars have the sizes that its manifest names, and every index is there."""
    sizes = dict(zip(manifest.names, manifest.bytes.tolist(), strict=True))
    local_sizes = {name: size for name, size in sizes.items() if not is_remote(name)}
    if _sizes(folder) != local_sizes:
        return False
    return all(os.path.exists(manifest.index(number)) for number in range(len(sizes)))


def _sizes(folder: Path) -> dict[str, int]:
    """Return the size of each tar of a folder, by name; -1 for a link that leads nowhere."""
    sizes = {}

    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".tar"):
                sizes[entry.name] = entry.stat().st_size if os.path.exists(entry.path) else -1

    return sizes


def index_tars(tars: Sequence[Path], homes: Sequence[Path], num_workers: int | None = None) -> list[Row]:
    """Return the size, counts and checksum of each tar in the order of `tars`, from its index.

    An index that is not there, is damaged, or is of an older state of its tar, is made and written first.

    Args:
        tars: The paths of the tars.
        homes: The path of each tar's index, in the same order.
        num_workers: Number of processes that index; None is one for each core. If the tars to be indexed have at most
            256 MiB together, this process alone indexes them.

    Raises:
        ConfigError: If a tar cannot be read, or its index cannot be written.
    """
    try:
        rows = {}
        todo = []
        total_bytes = 0
        for i, (tar, home) in enumerate(zip(tars, homes, strict=True)):
            row = _fresh(tar, home)
            if row is None:
                todo.append(i)
                total_bytes += tar.stat().st_size
            else:
                rows[i] = row
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: cannot be read ({error.strerror}): is it a link whose shard was moved?"
        ) from error

    # Only work that takes a while gets other processes, and a progress bar.
    is_long_work = total_bytes > _SERIAL_BYTES
    num_workers = min(num_workers or os.cpu_count() or 1, len(todo))
    jobs = [(tars[i], homes[i]) for i in todo]
    columns = (TextColumn("indexing shards"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not is_long_work) as progress:
        task = progress.add_task("", total=len(todo))
        with _pool(num_workers if is_long_work else 1) as run:
            for i, row in zip(todo, run(_index, jobs), strict=True):
                rows[i] = row
                progress.advance(task)
    return [rows[i] for i in range(len(tars))]


@contextmanager
def _pool(num_workers: int) -> Generator[Callable[[Callable, Iterable], Iterable], None, None]:
    """Provide a function like `map` that runs in `num_workers` processes, or in this one where that is 1 or less."""
    if num_workers <= 1:
        yield map
    else:
        with executor(num_workers) as pool:
            yield pool.map


def _fresh(tar: Path, home: Path) -> Row | None:
    """Return what a manifest holds of a tar, from its index; None where the tar has to be indexed first."""
    try:
        index = ShardIndex.load(home) if home.is_file() else None
    except ConfigError as error:
        # A damaged index is made anew, and no reason to stop.
        say(f"{error}")
        return None

    if index is None or not index.is_of(tar):
        return None
    return index.row


def _index(job: tuple[Path, Path]) -> Row:
    """Index a tar, write the index, and return what a manifest holds of it; say which records the tar has lost.

    Raises:
        ConfigError: If the tar cannot be read, or its index cannot be written.
    """
    tar, home = job
    try:
        before = ShardIndex.load(home) if home.is_file() else None
    except ConfigError:
        # `_fresh` has told the user of it.
        before = None

    try:
        index = index_shard(tar)
        home.parent.mkdir(parents=True, exist_ok=True)
        index.save(home)
    except OSError as error:
        raise ConfigError(f"{tar}: cannot be indexed ({error.strerror or error})") from error

    if before is not None:
        lost = lost_keys(before, index)
        if lost:
            shown = ", ".join(lost[:10])
            if len(lost) > 10:
                shown += ", ..."
            num_before = before.num_records
            say(f"{tar}: changed since it was indexed: {len(lost)} of its {num_before} records are gone: {shown}")
    return index.row
