"""`source=shards`: index tars that exist already, such as img2dataset's, where they lie or under a name."""

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
from visllama.prepare.raw import require_split


@dataclass(frozen=True)
class Shards:
    """The keys of `source=shards`, which indexes existing tars, without the key `from`, which names the tars.

    Args:
        name: The folder below `paths.data` under which the tars will be found; None indexes local tars where they lie.
        split: The split that the tars belong to: "train", "val" or "test".
        workers: The number of processes that index local tars; None starts one for each core.
        check_only: Whether only to report what is damaged in the tars, and to write nothing.
        cache_gib: The most that fetched shards may take up in the cache, in GiB; None sets no limit.
    """

    name: str | None
    split: str
    workers: int | None
    check_only: bool
    cache_gib: float | None

    def check(self) -> None:
        """Check `split` and `cache_gib`; nothing on the disk is looked at.

        Raises:
            ConfigError: If `split` is no split, or `cache_gib` is 0 or less; the message names the key.
        """
        require_split(self.split)
        gib = self.cache_gib
        require(gib is None or gib > 0, f"cache_gib={gib}: must be more than 0, or null")


def find(place: str) -> list[str]:
    """Return the tars that the key `from` names, in their order.

    Args:
        place: A local tar, a folder of tars, or a pattern with "*" in the file name or with braces; or addresses such
            as "https://host/{00000..00099}.tar". Whether remote tars exist is not checked: every number is returned.

    Returns:
        Absolute paths with all links followed, or addresses.

    Raises:
        ConfigError: If no local tar is there, an address has a scheme that is not opened, or an address does not name
            its tars by numbers, or its braces do not match.
    """
    if not is_remote(place):
        try:
            tars = find_tars(place)
        except ConfigError as error:
            # `find_tars` speaks of the key that training reads; here the user has typed another one.
            message = str(error).replace("path=", "from=", 1)
            raise ConfigError(message) from error
        return [os.path.realpath(tar) for tar in tars]

    check_address(place)

    # A remote place cannot be listed, so that its tars have to be numbered.
    path, _, _ = place.partition("?")
    is_numbered = "*" not in place and path.endswith(".tar")
    if not is_numbered:
        raise ConfigError(f"from={place}: name the tars of a place elsewhere by numbers: .../{{00000..00099}}.tar")
    try:
        return list(braceexpand(place))
    except ValueError as error:
        raise ConfigError(f"from={place}: its braces do not match") from error


def adopt(spec: Shards, place: str, folder: Path | None, cache: Path) -> tuple[Path, Manifest]:
    """Index tars that are there already, so that training can read them; remote tars are fetched for that.

    Indexes that are there already and up to date are kept, so that the same call goes on after an interruption.

    Args:
        spec: The keys of the source.
        place: The value of `from`: the tars, as `find` reads it.
        folder: The folder of the split, which is made. It gets a manifest and, for local tars, links to them with
            their indexes; for remote ones, the indexes alone. None leaves local tars where they lie, with the index in
            their folder; remote tars need a folder.
        cache: The folder `paths.cache`. Fetched tars are kept in it; without `folder`, so are the indexes of local tars
            whose own folder cannot be written to.

    Returns:
        The path that training reads the tars from (`folder`, or `place` as a path), and their manifest.

    Raises:
        ConfigError: If there is no tar, a tar cannot be read or fetched, remote tars are given without a folder,
            `folder` already holds files that were not made from the same tars, or no tar holds a record (this is
            checked only if a folder is given).
    """
    tars = find(place)

    if folder is None:
        require(not is_remote(place), f"from={place}: what lies elsewhere needs a name=, under which its index is kept")
        manifest = local_manifest(place, cache, spec.workers)
        return Path(place).expanduser(), manifest

    _hold_to(folder, place, tars)
    if is_remote(place):
        manifest = _index_remote(tars, folder, cache, spec.cache_gib)
    else:
        manifest = _index_links(tars, folder, spec.workers)

    num_records = manifest.num_records.sum()
    if num_records == 0:
        faults = _describe_faults(manifest.faults)
        raise ConfigError(f"from={place}: no record can be read in its tars ({faults})")

    manifest.save()
    return folder, manifest


def index_each(tars: list[str]) -> Iterator[ShardIndex]:
    """Yield a new index of each local tar, in the order of the tars; nothing is written. A progress bar is shown.

    Args:
        tars: The paths of the tars.

    Raises:
        ConfigError: If a tar cannot be read.
    """
    is_quiet = not sys.stdout.isatty()
    for tar in track(tars, "reading shards", transient=True, disable=is_quiet):
        try:
            yield index_shard(Path(tar))
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"{tar}: cannot be read ({reason})") from error


def _index_remote(urls: list[str], folder: Path, cache: Path, cache_gib: float | None) -> Manifest:
    """Fetch and index remote shards, and return their manifest."""
    max_bytes = None
    if cache_gib is not None:
        max_bytes = int(cache_gib * 2**30)
    shard_cache = ShardCache(cache / "shards", max_bytes)
    rows = _fetch(urls, folder, shard_cache)
    return Manifest.of(str(folder), urls, rows)


def _index_links(tars: list[str], folder: Path, num_workers: int | None) -> Manifest:
    """Link local tars from the folder under numbers, index them, and return their manifest."""
    links = [folder / f"{number:05d}.tar" for number in range(len(tars))]
    for link, tar in zip(links, tars, strict=True):
        # The same command may have been interrupted here before.
        if not link.is_symlink():
            link.symlink_to(tar)

    homes = [link.with_name(f"{link.name}.idx") for link in links]
    rows = index_tars(links, homes, num_workers)
    names = [link.name for link in links]
    return Manifest.of(str(folder), names, rows)


def _hold_to(folder: Path, place: str, tars: list[str]) -> None:
    """Check that a folder was begun with these tars; a new or empty one is begun, with the tars in its `plan.json`.

    Raises:
        ConfigError: If the folder holds, or was begun with, something else.
    """
    tar_list = "\n".join(tars)
    tars_sha256 = hashlib.sha256(tar_list.encode()).hexdigest()
    plan = folder / "plan.json"

    is_new = not folder.exists() or not any(folder.iterdir())
    if is_new:
        folder.mkdir(parents=True, exist_ok=True)
        description = {"sha256": tars_sha256, "settings": {"from": place}}
        text = json.dumps(description, indent=2)
        write_whole(plan, text + "\n")

    try:
        text = plan.read_text(encoding="utf-8")
        is_same = json.loads(text)["sha256"] == tars_sha256
    except (OSError, ValueError, KeyError, TypeError):
        is_same = False

    if not is_same:
        raise ConfigError(f"{folder}: holds other shards than {place}: give another name= or out=, or delete it")


def _fetch(urls: list[str], folder: Path, cache: ShardCache) -> list[Row]:
    """Fetch shards one after the other and index each; a shard that is indexed already is not fetched again."""
    # A manifest without counts knows where each shard's index belongs.
    no_counts = np.zeros(len(urls), np.int64)
    names = Manifest(str(folder), urls, bytes=no_counts, num_records=no_counts, num_pairs=no_counts, crc=no_counts)

    rows = []
    is_quiet = not sys.stdout.isatty()
    tracked_urls = track(urls, "fetching shards", transient=True, disable=is_quiet)
    for number, url in enumerate(tracked_urls):
        home = Path(names.index(number))
        if not home.is_file():
            try:
                # A shard that is held open is not evicted while it is indexed.
                with cache.open(url, None):
                    index = index_shard(cache.path(url))
                    index.save(home)
            except (FetchError, OSError, WriteFailed) as error:
                raise ConfigError(f"from={url}: {error}; the same command goes on from there") from error

        rows.append(ShardIndex.load(home).row)
    return rows


def _describe_faults(faults: Mapping[str, int]) -> str:
    """Return the number of damaged places by reason as text; "they are empty" if nothing is damaged."""
    counts = [f"{reason} {count}" for reason, count in faults.items()]
    return ", ".join(counts) or "they are empty"


def counts(manifest: Manifest, started: float) -> dict:
    """Return the totals of indexed tars, for the summary that `prepare` prints.

    Args:
        manifest: The manifest of the tars.
        started: The value of `time.perf_counter()` when the work began.

    Returns:
        `records`, `pairs` (captions, questions and conversations), `shards`, `bytes`, `skipped` (the number of damaged
        places by reason) and `seconds` (since `started`).
    """
    seconds = time.perf_counter() - started
    return {
        "records": int(manifest.num_records.sum()),
        "pairs": int(manifest.num_pairs.sum()),
        "shards": len(manifest.names),
        "bytes": int(manifest.bytes.sum()),
        "skipped": manifest.faults,
        "seconds": round(seconds, 1),
    }
