"""`source=shards`: tars that are there already, as img2dataset's, are indexed: where they lie, or under a name."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from braceexpand import braceexpand
from rich.progress import track

from visllama.data.shards.cache import ShardCache
from visllama.data.shards.index import Row, ShardIndex, index_shard
from visllama.data.shards.manifest import Manifest, find_tars, index_tars, local_manifest
from visllama.data.shards.remote import FetchError, check_address, is_remote
from visllama.errors import ConfigError, require
from visllama.files import WriteFailed, write_whole
from visllama.prepare.raw import SPLITS


@dataclass(frozen=True)
class Shards:
    """Tars of others.

    Args:
        name: The folder below `paths.data` that will name them; None indexes local ones where they lie.
        split: Of which they are.
        workers: Processes; None is one a core.
        check_only: Say what is damaged in them, write nothing.
        cache_gib: Most that fetched shards may take up.
    """

    name: str | None
    split: str
    workers: int | None
    check_only: bool
    cache_gib: float | None

    def check(self) -> None:
        require(self.split in SPLITS, f"split={self.split}: choose {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
        gib = self.cache_gib
        require(gib is None or gib > 0, f"cache_gib={gib}: must be more than 0, or null")


def find(place: str) -> list[str]:
    """Return the tars that `from=` names, local or remote.

    Raises:
        ConfigError: If there is none, or an address is not opened.
    """
    if not is_remote(place):
        try:
            return [os.path.realpath(tar) for tar in find_tars(place)]
        except ConfigError as error:
            raise ConfigError(str(error).replace("path=", "from=", 1)) from error
    check_address(place)
    if "*" in place or not place.partition("?")[0].endswith(".tar"):
        raise ConfigError(f"from={place}: name the tars of a place elsewhere by numbers: .../{{00000..00099}}.tar")
    return list(braceexpand(place))


def adopt(given: Shards, place: str, folder: Path | None, cache: Path) -> tuple[Path, Manifest]:
    """Index tars; gives where they are found from now on.

    Args:
        given: The keys.
        place: A path, a pattern, or addresses.
        folder: The split's, of links or indexes to the tars; None leaves them where they lie.
        cache: `paths.cache`.

    Raises:
        ConfigError: If there is none, none can be read, or the folder holds something else.
    """
    tars = find(place)
    if folder is None:
        require(not is_remote(place), f"from={place}: what lies elsewhere needs a name=, under which its index is kept")
        return Path(place).expanduser(), local_manifest(place, cache, given.workers)
    links = {} if is_remote(place) else {f"{number:05d}.tar": tar for number, tar in enumerate(tars)}
    _hold_to(folder, place, tars)
    if is_remote(place):
        indexes = _fetch(tars, folder, ShardCache(cache / "shards", _bytes(given.cache_gib)))
        manifest = Manifest.of(str(folder), tars, indexes)
    else:
        for name, tar in links.items():
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(tar)
        paths = [folder / name for name in links]
        indexes = index_tars(paths, [path.with_name(f"{path.name}.idx") for path in paths], given.workers)
        manifest = Manifest.of(str(folder), list(links), indexes)
    if not manifest.num_records.sum():
        raise ConfigError(f"from={place}: no record can be read in its tars ({_faults(manifest.faults)})")
    manifest.save()
    return folder, manifest


def index_each(tars: list[str]) -> Iterator[ShardIndex]:
    """Index local tars, and write nothing."""
    for tar in track(tars, "reading shards", transient=True, disable=not sys.stdout.isatty()):
        try:
            yield index_shard(Path(tar))
        except OSError as error:
            raise ConfigError(f"{tar}: cannot be read ({error.strerror or error})") from error


def _hold_to(folder: Path, place: str, tars: list[str]) -> None:
    """Refuse a folder that holds, or was begun with, other shards than these."""
    described = {"sha256": hashlib.sha256("\n".join(tars).encode()).hexdigest(), "settings": {"from": place}}
    plan = folder / "plan.json"
    if not folder.exists() or not any(folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(plan, json.dumps(described, indent=2) + "\n")
    try:
        same = json.loads(plan.read_text(encoding="utf-8"))["sha256"] == described["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ConfigError(f"{folder}: holds other shards than {place}: give another name= or out=, or delete it")


def _fetch(urls: list[str], folder: Path, cache: ShardCache) -> list[Row]:
    """Fetch shards one after the other and index each; those that are indexed already are not fetched again."""
    rows, named = [], Manifest(str(folder), urls, *[np.zeros(len(urls), np.int64)] * 4)
    for number, url in enumerate(track(urls, "fetching shards", transient=True, disable=not sys.stdout.isatty())):
        home = Path(named.index(number))
        if not home.is_file():
            try:
                with cache.open(url, None):  # held open, it is not evicted meanwhile
                    index_shard(cache.path(url)).save(home)
            except (FetchError, OSError, WriteFailed) as error:
                raise ConfigError(f"from={url}: {error}; the same command goes on from there") from error
        rows.append(ShardIndex.load(home).row)
    return rows


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * 2**30)


def _faults(faults: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in faults.items()) or "they are empty"


def counts(manifest: Manifest, started: float) -> dict:
    """Sum up what was indexed, as the writer does for what it wrote."""
    return {
        "records": int(manifest.num_records.sum()),
        "pairs": int(manifest.num_pairs.sum()),
        "shards": len(manifest.names),
        "bytes": int(manifest.bytes.sum()),
        "skipped": manifest.faults,
        "seconds": round(time.perf_counter() - started, 1),
    }
