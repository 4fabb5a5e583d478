"""Serve the records of webdataset tars as a source."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
from rich.progress import track

from visllama.data.held_out import held_out_rows
from visllama.data.items import ItemPlace, place_of_item
from visllama.data.record import image_suffixes, read_text
from visllama.data.shards.cache import ShardCache
from visllama.data.shards.index import ShardIndex
from visllama.data.shards.manifest import local_manifest, remote_manifest
from visllama.data.shards.reader import ShardReader
from visllama.data.shards.remote import is_remote
from visllama.data.source import Source
from visllama.errors import BadRecord, ConfigError


class ShardSource(Source):
    """A source of the records of webdataset tars, read from the disk or the network one by one, in any order.

    Making one indexes local tars that are not indexed yet, and downloads the manifest of remote ones.

    Args:
        split: "train" reads `path`. Any other reads `val_path`; without one, "val" reads what is held out of `path`,
            and others are refused.
        path: A tar, a folder of tars, a pattern (`a/{00000..00011}.tar`, `a/*.tar`), or the URL of a folder with a
            `manifest.json` (`s3://bucket/folder`). None is allowed only where `val_path` is read.
        val_path: Tars for validation, written as `path` is; None holds a part of `path` out of training for it.
        val_fraction: Without `val_path`, the share of the records of `path` that is held out; at least one record, and
            at most 10,000. None or 0 holds out nothing: then only "train" can be read.
        filter: For scores (numbers in the records' metadata), by name, the least and the greatest value, None for no
            bound: `{"watermark_score": [None, 0.5]}`. Records outside, or without the score, are left out of "train";
            other splits are not filtered. None or an empty mapping filters nothing.
        cache: The folder for downloaded shards, and for indexes that cannot be written beside their tars.
        cache_gib: The most GiB of shards that the cache holds; None is no bound.

    Attributes:
        manifest: The shards, also those of which nothing is read here.
        held_out: For the number of each shard of which records are held out, the sorted numbers of those records.
        reads_held_out: Whether this source reads the held-out records alone.

    Raises:
        ConfigError: If there is no tar or manifest, no record can be read, no record would be left to train on, or an
            argument is wrong.
    """

    __module__ = "visllama.data.shards"  # its public name: YAML, runs and the order of samples know it by that

    def __init__(
        self,
        split: str,
        path: str | None,
        val_path: str | None = None,
        val_fraction: float | None = 0.01,
        filter: Mapping[str, Sequence[float | None]] | None = None,
        cache: str = "~/.cache/visllama",
        cache_gib: float | None = None,
    ) -> None:
        # Training reads `path`, and so does validation of what is held out of it.
        chosen_path = path if split == "train" or val_path is None else val_path
        if chosen_path is None:
            raise ConfigError("path is not given: a tar, a folder of tars, or a pattern like a/{00000..00011}.tar")
        self.path = chosen_path

        self.reads_held_out = split != "train" and val_path is None
        _check_fraction(val_fraction)

        if self.reads_held_out and not val_fraction:
            raise ConfigError(
                f"val_path=null val_fraction={val_fraction}: nothing of path={path} is held out to validate or judge "
                f"on: give val_path=FILE, or val_fraction=0.01; to train without, "
                f"trainer.val_check_interval=null judge=false"
            )
        if self.reads_held_out and split not in ("train", "val"):
            raise ConfigError(
                f"split={split} val_path=null: what path={path} holds out serves validation, and what was chosen by it "
                f"is not judged by it again: give other tars as val_path=FILE, or split=val"
            )

        folder = Path(cache).expanduser()
        budget = None if cache_gib is None else int(cache_gib * 2**30)
        self.cache: ShardCache | None = None
        if is_remote(self.path):
            self.cache = ShardCache(folder / "shards", budget)
            self.manifest = remote_manifest(self.path, self.cache)
        else:
            self.manifest = local_manifest(self.path, folder)
            # A local manifest may name shards that lie elsewhere: a folder that was adopted.
            if any(map(is_remote, self.manifest.names)):
                self.cache = ShardCache(folder / "shards", budget)
        self.is_remote = self.cache is not None
        self.kinds = self.manifest.kinds

        self.reader = ShardReader(self.manifest, self.cache)
        self.filter = _check_filter(filter or {}) if split == "train" else {}
        self.held_out = self._hold_out(val_fraction) if val_path is None and val_fraction else {}
        self.fingerprint = self._make_fingerprint()
        self.origin = self._describe_origin()

        # Kept for some shards only: the record numbers of all shards may not fit in memory.
        self._chosen = lru_cache(maxsize=256)(self._choose)
        self._num_records, self._num_items = self._count()
        # Arrays: of what a Sequence is, their readers need a length and places only.
        self.shard_sizes = cast("Sequence[int]", self._num_records)
        self.shard_items = cast("Sequence[int]", self._num_items)
        self.ends = np.cumsum(self._num_records)
        self.item_ends = np.cumsum(self._num_items)
        self._counted = lru_cache(maxsize=256)(self._count_items)
        if not len(self):
            raise ConfigError(f"path={self.path}: its tars hold no record{self._why_none()}")

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def faults(self) -> dict[str, int]:
        """The number of damaged places and unusable members and records of the tars, by reason."""
        return self.manifest.faults

    def tell_faults(self) -> Iterator[str]:
        """Yield a sentence for people on each damaged place or unusable record of the tars, at most 1000 for a tar.

        The index of each tar is read, and downloaded first if the tar is remote.

        Raises:
            ConfigError: If an index cannot be read.
        """
        for shard in range(len(self.manifest.names)):
            for fault in self.reader.index(shard).faults:
                yield fault.tell(self.manifest.shard(shard))

    def _make_fingerprint(self) -> str:
        """Return a hash that changes with what the source holds, and not with where it lies."""
        held_out = {shard: rows.tolist() for shard, rows in self.held_out.items()}
        selection = json.dumps([self.filter, held_out], sort_keys=True)
        return hashlib.sha256(f"{self.manifest.sha256} {selection}".encode()).hexdigest()

    def _describe_origin(self) -> str:
        """Return in words where the records come from."""
        num_held_out = sum(map(len, self.held_out.values()))

        if self.reads_held_out:
            num_records = int(self.manifest.num_records.sum())
            return f"{num_held_out:,} of {num_records:,} records held out of {self.path}"
        if num_held_out:
            return f"{self.path} without {num_held_out:,} held-out records"
        return self.path

    def read(self, index: int) -> dict:
        """Return the record at an index from 0, read from its tar; indexing the source returns the same.

        Reading a record checks its text, so nothing else is checked here.

        Raises:
            BadRecord: If the record's bytes are not where the tar's index says, or its text cannot be used.
            ConfigError: If the shard or its index cannot be read.
        """
        return self[index]

    def __getitem__(self, index: int) -> dict:
        """Read the record of this index from its tar, which is downloaded first if it is remote.

        Returns:
            A dict of `key`, which begins with the tar's name (a remote one's number) where there are several; `image`
            (the file's bytes), or a list `images` where there is not exactly one; one of `captions`, `questions` and
            `conversations`; and, where the record has them, `image_id` (the image's own name) and `type`.

        Raises:
            BadRecord: If the record's bytes are not where the index says, or its text cannot be used.
            ConfigError: If the shard or its index cannot be read.
        """
        shard = self.shard_of(index)
        # The row counts the records of the shard that are read; the reader wants the row among all of them.
        row = index - int(self.ends[shard]) + int(self._num_records[shard])
        if self._is_partly_read(shard):
            row = int(self._chosen(shard)[row])

        key, contents = self.reader.read(shard, row)
        images = [contents[suffix] for suffix in image_suffixes(contents)]
        text_members = {name: contents[name] for name in ("json", "txt") if name in contents}
        text = read_text(text_members, len(images))
        if text.kind == "captions" and len(images) > 1:
            raise BadRecord(
                "text", f"{self.manifest.shard(shard)}: record {key!r} has captions of {len(images)} images"
            )

        record: dict[str, Any] = {"key": self._unique(shard, key)}
        if text.image_id is not None:
            record["image_id"] = text.image_id
        if text.type is not None:
            record["type"] = text.type
        if len(images) == 1:
            record["image"] = images[0]
        else:
            record["images"] = images
        record[text.kind] = text.items
        return record

    def shard_of(self, index: int) -> int:
        """Return the number in the manifest of the shard that holds a record; nothing is read.

        Args:
            index: The record's index in this source, from 0. For one that is too large, the number of shards is
                returned.
        """
        return int(np.searchsorted(self.ends, index, side="right"))

    def shard_of_item(self, item: int) -> int:
        """Return the number in the manifest of the shard that holds an item; nothing is read.

        Args:
            item: The item's number in this source, from 0. For one that is too large, the number of shards is returned.
        """
        return int(np.searchsorted(self.item_ends, item, side="right"))

    def find_item(self, item: int) -> ItemPlace:
        """Return the record that holds an item, the item's number in it, and the number of items of that record.

        Unless each record of the shard has one item, the shard is opened, and downloaded first if it is remote.

        Args:
            item: The item's number in this source, from 0.

        Raises:
            ConfigError: If the shard or its index cannot be read.
            IndexError: If `item` is not less than the number of items.
        """
        shard = self.shard_of_item(item)
        num_records = int(self._num_records[shard])
        num_items = int(self._num_items[shard])
        first_record = int(self.ends[shard]) - num_records
        item_of_shard = item - int(self.item_ends[shard]) + num_items

        if num_items == num_records:
            # One item each, as COYO has it: no index has to be read.
            return ItemPlace(first_record + item_of_shard, 0, 1)
        place = place_of_item(self._counted(shard), item_of_shard)
        return place._replace(record=first_record + place.record)

    def address(self, shard: int) -> tuple[str, int]:
        """Return the path or the URL of a shard, and its size in bytes; `shard` is its number in the manifest."""
        return self.manifest.shard(shard), int(self.manifest.bytes[shard])

    def _unique(self, shard: int, key: str) -> str:
        """Return a key with the tar's name before it, where there are several: each of them may count from zero."""
        name = self.manifest.names[shard]
        if len(self.manifest.names) == 1:
            return key

        if is_remote(name):
            return f"{shard:06d}/{key}"
        return f"{name.removesuffix('.tar')}/{key}"

    def _hold_out(self, val_fraction: float) -> dict[int, np.ndarray]:
        try:
            return held_out_rows(self.manifest, val_fraction)
        except ConfigError as error:
            raise ConfigError(f"path={self.path}: {error}{self._first_faults()}") from error

    def _is_partly_read(self, shard: int) -> bool:
        return bool(self.filter) or shard in self.held_out

    def _choose(self, shard: int) -> np.ndarray:
        return self._rows(shard, self.reader.index(shard))

    def _rows(self, shard: int, index: ShardIndex) -> np.ndarray:
        """Return the numbers of the records of a shard that this source reads, sorted."""
        held_out = self.held_out.get(shard, np.empty(0, np.int64))
        # The filter is for training alone.
        if self.reads_held_out:
            return held_out

        passing = _passing(index, self.filter)
        return np.setdiff1d(passing, held_out, assume_unique=True)

    def _count_items(self, shard: int) -> np.ndarray:
        """Return, for each record of a shard that this source reads, the number of items up to its end."""
        index = self.reader.opened_index(shard)
        counts = index.arrays["num_pairs"]
        if self._is_partly_read(shard):
            counts = counts[self._rows(shard, index)]
        return np.cumsum(counts, dtype=np.int64)

    def _count(self) -> tuple[np.ndarray, np.ndarray]:
        """Return, for each shard, the number of records and the number of items that this source reads.

        The manifest has both. Only for a shard of which a part is left out, they are counted in its index.
        """
        # Copies, since the manifest keeps the counts of all records.
        records = self.manifest.num_records.copy()
        pairs = self.manifest.num_pairs.copy()
        if self.reads_held_out:
            # Nothing is read of a shard that holds out nothing.
            records[:] = 0
            pairs[:] = 0

        partial_shards = range(len(records)) if self.filter else sorted(self.held_out)
        for shard in track(partial_shards, "reading scores", transient=True, disable=not self.filter):
            index = self.reader.index(shard)
            rows = self._rows(shard, index)
            records[shard] = len(rows)
            pairs[shard] = index.arrays["num_pairs"][rows].sum()

        return records, pairs

    def _why_none(self) -> str:
        """Return the end of the message that there is no record: the filter, or the first damaged places."""
        if self.filter and self.manifest.num_records.sum():
            arrays = self.reader.index(0).arrays
            scores = sorted(name.removeprefix("score.") for name in arrays if name.startswith("score."))
            return f" that passes filter={self.filter}; the first shard's scores are {', '.join(scores) or 'none'}"
        return self._first_faults()

    def _first_faults(self) -> str:
        first_faults = islice(self.tell_faults(), 3)
        return "".join(f"; {fault}" for fault in first_faults)


def _passing(index: ShardIndex, filter: Mapping[str, Sequence[float | None]]) -> np.ndarray:
    """Return the sorted numbers of a shard's records whose scores are within the filter's bounds, both included."""
    passes = np.ones(index.num_records, bool)
    for name, (least, most) in filter.items():
        # A record without the score has NaN, which is within no bounds.
        score = index.score(name)
        passes &= score >= (-math.inf if least is None else least)
        passes &= score <= (math.inf if most is None else most)

    return np.flatnonzero(passes)


def _check_fraction(val_fraction: object) -> None:
    if val_fraction is None:
        return
    if not _is_number(val_fraction) or not 0 <= val_fraction < 1:
        raise ConfigError(f"val_fraction={val_fraction}: must be at least 0 and less than 1, or null")


def _check_filter(filter: Mapping[str, Sequence[float | None]]) -> dict[str, list[float | None]]:
    """Check a filter, and return a copy with the bounds as lists.

    Raises:
        ConfigError: If the bounds of a score are not two numbers, or null.
    """
    checked = {}
    for name, bounds in filter.items():
        is_pair = isinstance(bounds, (list, tuple)) and len(bounds) == 2
        if not is_pair or not all(bound is None or _is_number(bound) for bound in bounds):
            raise ConfigError(f"filter.{name}={bounds}: give [least, most], null where there is no bound")
        checked[name] = list(bounds)

    return checked


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
