"""The index of a shard: which records it holds, and where their bytes lie. One pass over the tar's headers and texts.

A shard `X.tar` has its sidecar `X.tar.idx` (safetensors).
"""

from __future__ import annotations

import json
import math
import os
import zlib
from array import array
from collections import Counter, defaultdict
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from visllama.data.record import KINDS, Text, is_read, read_text
from visllama.data.shards.tar import BLOCK, Damage, Found, TarFile, walk
from visllama.errors import BadRecord, ConfigError
from visllama.files import replacing

INDEX_VERSION = 1
_MOST_TEXT = 2**22
"""Bytes of a text: JSON of nothing but brackets takes 25 times as many in memory."""
_MOST_LISTED = 1000
_MOST_SCORES = 64
_TEXTS = ("json", "txt")
_DTYPES = {
    "first": np.uint32,
    "offset": np.uint64,
    "size": np.uint32,
    "suffix": np.uint16,
    "header_crc": np.uint32,
    "key_end": np.uint64,
    "keys": np.uint8,
    "num_pairs": np.uint32,
}


class Member(NamedTuple):
    """A file in a tar; its header is the block before its bytes, and known by its checksum."""

    offset: int
    size: int
    header_crc: int


class _Records:
    """Records as they are found in a tar, checked."""

    def __init__(self, file: TarFile) -> None:
        self.file, self.spoiled = file, set()
        # Of each key the record's row, or -1 where it is none; and the rows that more members were found of.
        self.seen: dict[str, int] = {}
        self.partial: set[int] = set()
        self.counts: Counter[str] = Counter()
        self.listed: list[Damage] = []
        self.keys: list[str] = []
        self.suffixes: dict[str, int] = {}
        # Numbers side by side: an object each costs more than reading it did.
        self.first, self.num_pairs, self.kind = array("I", [0]), array("I"), array("B")
        self.offset, self.size, self.suffix, self.header_crc = array("Q"), array("I"), array("H"), array("I")
        self.scores: dict[str, array] = defaultdict(lambda: array("f"))

    def read(self) -> None:
        """Read them all."""
        key, group, torn = None, [], False
        for found in walk(self.file):
            if type(found) is tuple:
                if found[0] != key:
                    if group:
                        self._add(key, group, torn)
                        group, torn = [], False
                    key = found[0]
                group.append(found)
            elif found is None:
                if group:
                    self._add(key, group, True)
                key, group, torn = None, [], True
            else:
                self._fault(found)
                if found.reason in ("truncated", "type", "size"):
                    self.spoiled.add(found.key)
        if group:
            self._add(key, group, torn)

    def _fault(self, fault: Damage) -> None:
        self.counts[fault.reason] += 1
        if len(self.listed) < _MOST_LISTED:
            self.listed.append(fault)

    def _add(self, key: str, group: list[Found], torn: bool) -> None:
        members = {found[1]: found for found in group}
        known, row = key in self.seen, self.seen.setdefault(key, -1)
        reason, detail = "text", ""
        if known:
            reason, detail = "split key", "has members elsewhere too"
            if row >= 0 and not {self.suffixes.get(suffix) for suffix in members} <= self._suffixes(row):
                self.partial.add(row)
        elif key in self.spoiled:
            return  # a fault of a member names it
        elif len(members) < len(group):
            reason, detail = "duplicate", "has two members of one suffix"
        elif torn:
            reason, detail = "torn", "is beside a damaged place: members of it may have stood there"
        else:
            try:
                texts = {name: self._text(*members[name][2:4]) for name in _TEXTS if name in members}
                num_images = len(members) - len(texts)
                text = read_text(texts, num_images)
                if num_images or text.kind == "conversations":
                    return self._keep(key, group, text)
                reason, detail = "no image", f"has {text.kind} and no image"
            except BadRecord as error:
                detail = error.detail
        self._fault(Damage(group[0][2] - BLOCK, reason, f"record {key!r} {detail}", key))

    def _keep(self, key: str, group: list[Found], text: Text) -> None:
        row = self.seen[key] = len(self.keys)
        for name, value in text.scores.items():
            if name in self.scores or len(self.scores) < _MOST_SCORES:
                scores = self.scores[name]
                if len(scores) < row:
                    self.fill(scores)
                scores.append(value)
        for _, suffix, offset, size, crc in group:
            self.header_crc.append(crc)
            self.suffix.append(self.suffixes.setdefault(suffix, len(self.suffixes)))
            self.offset.append(offset)
            self.size.append(size)
        self.first.append(len(self.offset))
        self.keys.append(key)
        self.num_pairs.append(text.num_pairs)
        self.kind.append(KINDS.index(text.kind))

    def _suffixes(self, row: int) -> set[int]:
        return {*self.suffix[self.first[row] : self.first[row + 1]]}

    def fill(self, scores: array) -> array:
        """Return the records before this one a NaN, those that have no such score."""
        scores.extend(repeat(math.nan, len(self.keys) - len(scores)))
        return scores

    def _text(self, offset: int, size: int) -> bytes:
        if size > _MOST_TEXT:
            raise BadRecord("text", f"has a text of {size} bytes, and the most are {_MOST_TEXT}")
        content = self.file.read(offset, size)
        self.file.crc = zlib.crc32(content, self.file.crc)
        return content


class Row(NamedTuple):
    """What a manifest says of a shard."""

    bytes: int
    num_records: int
    num_pairs: int
    crc: int
    kinds: dict[str, int]
    faults: dict[str, int]


class ShardIndex:
    """The records of one shard: their keys, where their members' bytes lie, and what their metadata say in numbers.

    Args:
        arrays: Of each member `offset`, `size`, `header_crc` and `suffix` (into `facts["suffixes"]`); of each record
            `first` (its first member; one more at the end), `key_end` (into `keys`, UTF-8), `num_pairs`, `score.NAME`.
        facts: `bytes` of the tar, `crc` of its headers, `mtime_ns`, `suffixes`, `kinds` and `faults` (counts),
            `listed` (the first faults).
    """

    def __init__(self, arrays: dict[str, np.ndarray], facts: dict) -> None:
        self.arrays, self.facts = arrays, facts

    @property
    def num_records(self) -> int:
        return len(self.arrays["first"]) - 1

    @property
    def num_pairs(self) -> int:
        """Items of all records: captions, questions, conversations."""
        return int(self.arrays["num_pairs"].sum())

    @property
    def num_images(self) -> int:
        texts = [number for number, suffix in enumerate(self.facts["suffixes"]) if suffix in _TEXTS]
        return int((~np.isin(self.arrays["suffix"], texts)).sum())

    @property
    def row(self) -> Row:
        facts = self.facts
        counts = self.num_records, self.num_pairs
        return Row(facts["bytes"], *counts, facts["crc"], facts["kinds"], facts["faults"])

    @property
    def faults(self) -> list[Damage]:
        return [Damage(*fault) for fault in self.facts["listed"]]

    def keys(self) -> list[str]:
        ends, text = self.arrays["key_end"].tolist(), self.arrays["keys"].tobytes()
        return [text[a:b].decode("utf-8", "replace") for a, b in zip([0, *ends], ends, strict=False)]

    def key(self, record: int) -> str:
        start = int(self.arrays["key_end"][record - 1]) if record else 0
        return self.arrays["keys"][start : int(self.arrays["key_end"][record])].tobytes().decode("utf-8", "replace")

    def members(self, record: int) -> dict[str, Member]:
        """Return a record's members by their suffix."""
        first, last = self.arrays["first"][record : record + 2].tolist()
        suffixes = self.facts["suffixes"]
        return {
            suffixes[suffix]: Member(*where)
            for suffix, *where in zip(
                *(self.arrays[name][first:last].tolist() for name in ("suffix", "offset", "size", "header_crc")),
                strict=True,
            )
        }

    def score(self, name: str) -> np.ndarray:
        """Return a number of each record's metadata; NaN where a record has none of that name."""
        return self.arrays.get(f"score.{name}", np.full(self.num_records, np.nan, np.float32))

    def save(self, path: Path) -> None:
        """Write the sidecar, whole or not at all.

        Raises:
            WriteFailed: If it cannot be written.
        """
        facts = json.dumps({"index_version": INDEX_VERSION, **self.facts})
        with replacing(path) as temporary:
            save_file(self.arrays, temporary, {"visllama": facts, "checksum": str(self._checksum(facts))})

    @classmethod
    def load(cls, path: Path) -> ShardIndex:
        """Read a sidecar.

        Raises:
            ConfigError: If it is damaged, or of another version.
        """
        try:
            with safe_open(path, "np") as file:
                said = file.metadata()
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            found = cls(arrays, json.loads(said["visllama"]))
            whole = found.facts["index_version"] == INDEX_VERSION
            whole = whole and said["checksum"] == str(found._checksum(said["visllama"])) and found._is_consistent()
        except FileNotFoundError as error:
            raise ConfigError(
                f"{path}: is not there: delete the folder's manifest.json, and both are made anew"
            ) from error
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error})") from error
        except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{path}: no index of a shard ({error}): delete it, and it is made anew") from error
        if not whole:
            raise ConfigError(f"{path}: an index of another version, or damaged: delete it, and it is made anew")
        return found

    def _checksum(self, facts: str) -> int:
        total = zlib.crc32(facts.encode())
        for name in sorted(self.arrays):
            total = zlib.crc32(self.arrays[name].tobytes(), zlib.crc32(name.encode(), total))
        return total

    def _is_consistent(self) -> bool:
        """Return whether reading by it stays within it and the tar, whoever wrote it."""
        arrays, facts, num_records = self.arrays, self.facts, self.num_records
        scores = {name: np.float32 for name in arrays if name.startswith("score.")}
        if any(arrays[name].ndim != 1 or arrays[name].dtype != kind for name, kind in {**_DTYPES, **scores}.items()):
            return False
        first, key_end = arrays["first"].astype(np.int64), arrays["key_end"].astype(np.int64)
        offset, size = arrays["offset"], arrays["size"].astype(np.uint64)
        total = facts["bytes"]
        return bool(
            {len(arrays[name]) for name in ("key_end", "num_pairs", *scores)} == {num_records}
            and len(offset) == len(size) == len(arrays["suffix"]) == len(arrays["header_crc"]) == first[-1]
            and first[0] == 0
            and (np.diff(first) > 0).all()
            and (np.diff(key_end, prepend=0) >= 0).all()
            and key_end[-1:].sum() == len(arrays["keys"])
            and all(type(facts[name]) is int for name in ("bytes", "crc", "mtime_ns"))
            and (
                not len(offset) or (offset.min() >= BLOCK and offset.max() <= total and (size <= total - offset).all())
            )
            and all(type(suffix) is str and is_read(suffix) for suffix in facts["suffixes"])
            and (not len(offset) or arrays["suffix"].max() < len(facts["suffixes"]))
            and all(type(count) is int for name in ("kinds", "faults") for count in facts[name].values())
            and all(list(map(type, fault)) == [int, str, str, str] for fault in facts["listed"])
        )

    def is_of(self, tar: Path) -> bool:
        """Return whether the tar is still the one that was indexed, by its size and time."""
        found = tar.stat()
        return (found.st_size, found.st_mtime_ns) == (self.facts["bytes"], self.facts["mtime_ns"])


def index_shard(tar: Path) -> ShardIndex:
    """Read a shard's headers and texts, once.

    Raises:
        OSError: If it cannot be read, or becomes shorter meanwhile.
    """
    file = TarFile(tar)
    try:
        records = _Records(file)
        records.read()
    finally:
        os.close(file.descriptor)
    return _pack(records, {"bytes": file.size, "crc": file.crc, "mtime_ns": file.mtime_ns})


def _pack(found: _Records, facts: dict) -> ShardIndex:
    keep = np.ones(len(found.keys), bool)
    keep[[*found.partial]] = False
    keys = [key.encode() for key, kept in zip(found.keys, keep.tolist(), strict=True) if kept]
    num_members = np.diff(np.frombuffer(found.first, np.uint32))
    kept = np.repeat(keep, num_members)
    of_members = ("offset", "size", "suffix", "header_crc")
    arrays = {name: np.frombuffer(getattr(found, name), _DTYPES[name])[kept] for name in of_members}
    arrays |= {
        "first": np.cumsum([0, *num_members[keep]], dtype=np.uint32),
        "key_end": np.cumsum([len(key) for key in keys], dtype=np.uint64),
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "num_pairs": np.frombuffer(found.num_pairs, np.uint32)[keep],
    }
    for name, scores in found.scores.items():
        arrays[f"score.{name}"] = np.frombuffer(found.fill(scores), np.float32)[keep]
    kinds = Counter(np.frombuffer(found.kind, np.uint8)[keep].tolist())
    facts |= {
        "suffixes": list(found.suffixes),
        "kinds": {KINDS[kind]: count for kind, count in kinds.items()},
        "faults": dict(found.counts),
        "listed": found.listed,
    }
    return ShardIndex(arrays, facts)


def lost_keys(before: ShardIndex, after: ShardIndex) -> list[str]:
    """Name the records that an earlier index held and a later one does not."""
    now = set(after.keys())
    return [key for key in before.keys() if key not in now]  # noqa: SIM118 (no mapping)
