"""Make, save and load the index of a shard (a tar): which records it holds, and where their bytes lie.

The index of `X.tar` is stored in the file `X.tar.idx` (safetensors), its sidecar. It is made in one pass over the tar's
headers and texts; a *member* is one file in the tar, and a record is all members of one key.
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
"""The version of the format of indexes and manifests; those of another version are refused."""
_MOST_TEXT = 2**22
"""The largest size of a record's text in bytes: JSON of nothing but brackets takes 25 times as many in memory."""
_MOST_LISTED = 1000
"""The largest number of damaged places that an index lists; all are counted."""
_MOST_SCORES = 64
"""The largest number of names of scores in an index: each costs a number a record, and a tar may have many."""
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
    """A file in a tar.

    Attributes:
        offset: Where its content begins, in bytes from the start of the tar; the 512 bytes before it are its header.
        size: The number of bytes of its content.
        header_crc: The checksum of its header, by which the header is recognised.
    """

    offset: int
    size: int
    header_crc: int


class _Records:
    """Collect the records of a tar while its members are read, and what is damaged in it.

    Attributes:
        rows: For each key that came, the number of its record among those that are kept; -1 where it is not kept.
        spoiled: The keys of records with a damaged member, which has been reported.
        partial: The numbers of records of which more members came later, elsewhere in the tar.
        counts: The number of damaged places, by reason.
        listed: The first damaged places.
        keys: The key of each record.
        suffixes: The number by which each suffix is stored.
        scores: The scores of the records, by name.
    """

    def __init__(self, file: TarFile) -> None:
        self.file = file
        self.rows: dict[str, int] = {}
        self.spoiled: set[str] = set()
        self.partial: set[int] = set()
        self.counts: Counter[str] = Counter()
        self.listed: list[Damage] = []
        self.keys: list[str] = []
        self.suffixes: dict[str, int] = {}

        # Numbers side by side: making an object of each member takes longer than reading it.
        self.first = array("I", [0])
        self.num_pairs = array("I")
        self.kind = array("B")
        self.offset = array("Q")
        self.size = array("I")
        self.suffix = array("H")
        self.header_crc = array("I")
        self.scores: dict[str, array] = defaultdict(lambda: array("f"))

    def read(self) -> None:
        """Read all records of the tar.

        The members of a record stand side by side and have one key, so a record ends where another key begins.
        """
        key = ""
        group: list[Found] = []
        torn = False
        for found in walk(self.file):
            if found is None:
                # Members may be lost here: the records on both sides are not known to be whole.
                if group:
                    self._add(key, group, torn=True)
                key = ""
                group = []
                torn = True
            elif isinstance(found, Damage):
                self._fault(found)
                # Damage of these kinds is a member's own, and spoils the record.
                if found.reason in ("truncated", "type", "size"):
                    self.spoiled.add(found.key)
            else:
                if found[0] != key:
                    if group:
                        self._add(key, group, torn)
                        group = []
                        torn = False
                    key = found[0]
                group.append(found)

        # The last record ends with the tar.
        if group:
            self._add(key, group, torn)

    def _fault(self, fault: Damage) -> None:
        self.counts[fault.reason] += 1
        if len(self.listed) < _MOST_LISTED:
            self.listed.append(fault)

    def _add(self, key: str, group: list[Found], torn: bool) -> None:
        """Check the members that stand together under one key; keep them as a record, or report why not."""
        members = {found[1]: found for found in group}
        # Known from here on, even if it is refused below: members of it that come later then belong to a split record.
        is_known = key in self.rows
        row = self.rows.setdefault(key, -1)

        if is_known:
            reason = "split key"
            detail = "has members elsewhere too"
            # Members of other suffixes show that the row is only a part of its record; equal ones are a copy of it.
            suffixes = {self.suffixes.get(suffix) for suffix in members}
            if row >= 0 and not suffixes <= self._suffixes(row):
                self.partial.add(row)
        elif key in self.spoiled:
            # The damaged place of its member has been reported, and names it.
            return
        elif len(members) < len(group):
            reason = "duplicate"
            detail = "has two members of one suffix"
        elif torn:
            reason = "torn"
            detail = "is beside a damaged place: members of it may have stood there"
        else:
            try:
                texts = {name: self._text(*members[name][2:4]) for name in _TEXTS if name in members}
                num_images = len(members) - len(texts)
                text = read_text(texts, num_images)
                if num_images or text.kind == "conversations":
                    self._keep(key, group, text)
                    return
                reason = "no image"
                detail = f"has {text.kind} and no image"
            except BadRecord as error:
                reason = "text"
                detail = error.detail

        header = group[0][2] - BLOCK
        self._fault(Damage(header, reason, f"record {key!r} {detail}", key))

    def _keep(self, key: str, group: list[Found], text: Text) -> None:
        row = len(self.keys)
        self.rows[key] = row

        # A score may be in some records only: the records before this one that lack it get NaN, which no filter passes.
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
        first = self.first[row]
        end = self.first[row + 1]
        return set(self.suffix[first:end])

    def fill(self, scores: array) -> array:
        """Append NaN to scores until there is one for each record so far, and return them."""
        num_missing = len(self.keys) - len(scores)
        scores.extend(repeat(math.nan, num_missing))
        return scores

    def _text(self, offset: int, size: int) -> bytes:
        if size > _MOST_TEXT:
            raise BadRecord("text", f"has a text of {size} bytes, and the most are {_MOST_TEXT}")
        content = self.file.read(offset, size)
        self.file.crc = zlib.crc32(content, self.file.crc)
        return content


class Row(NamedTuple):
    """The size, counts and checksum of one shard (a tar of records), as the manifest of its source stores them.

    Attributes:
        bytes: The size of the tar in bytes.
        num_records: The number of records.
        num_pairs: The number of items of all records: captions, questions, conversations.
        crc: The checksum of the tar's headers and texts.
        kinds: The number of records of each kind of text, as "captions".
        faults: The number of damaged places and unusable records, by reason.
    """

    bytes: int
    num_records: int
    num_pairs: int
    crc: int
    kinds: dict[str, int]
    faults: dict[str, int]


class ShardIndex:
    """The index of one shard: its records' keys, where their members' bytes lie, and the scores in their metadata.

    Most callers get one from `index_shard` or `load`. Records are numbered from 0, in the order of the tar.

    Args:
        arrays: For each member (file in the tar): `offset`, `size`, `header_crc` and `suffix` (its place in
            `facts["suffixes"]`). For each record: `first` (the number of its first member; one entry more at the end),
            `key_end` (the end of its key in `keys`, the bytes of all keys in UTF-8), `num_pairs` (its number of items),
            and `score.NAME` (a number of its metadata; NaN where it has none).
        facts: `bytes` (the tar's size), `crc` (the checksum of its headers and texts), `mtime_ns` (its time of
            modification), `suffixes` (as "jpg"), `kinds` (the number of records of each kind of text), `faults` (the
            number of damaged places by reason), and `listed` (the first damaged places).
    """

    def __init__(self, arrays: dict[str, np.ndarray], facts: dict) -> None:
        self.arrays = arrays
        self.facts = facts

    @property
    def num_records(self) -> int:
        """Number of records that can be read."""
        return len(self.arrays["first"]) - 1

    @property
    def num_pairs(self) -> int:
        """Number of items of all records: captions, questions, conversations."""
        return int(self.arrays["num_pairs"].sum())

    @property
    def num_images(self) -> int:
        """Number of images of all records."""
        texts = [number for number, suffix in enumerate(self.facts["suffixes"]) if suffix in _TEXTS]
        # Whatever is no text is an image: other members are not indexed.
        is_image = ~np.isin(self.arrays["suffix"], texts)
        return int(is_image.sum())

    @property
    def row(self) -> Row:
        """The size, counts and checksum of the shard, as the manifest (the list of a source's shards) stores them."""
        return Row(
            bytes=self.facts["bytes"],
            num_records=self.num_records,
            num_pairs=self.num_pairs,
            crc=self.facts["crc"],
            kinds=self.facts["kinds"],
            faults=self.facts["faults"],
        )

    @property
    def faults(self) -> list[Damage]:
        """The first damaged places and unusable records of the tar, at most 1000."""
        return [Damage(*fault) for fault in self.facts["listed"]]

    def keys(self) -> list[str]:
        """Return the keys of all records, in the order of the tar."""
        ends = self.arrays["key_end"].tolist()
        starts = [0, *ends[:-1]]
        text = self.arrays["keys"].tobytes()
        return [text[start:end].decode("utf-8", "replace") for start, end in zip(starts, ends, strict=False)]

    def key(self, record: int) -> str:
        """Return the key of a record, given by its number in the shard, from 0.

        Raises:
            IndexError: If the number is too large.
        """
        ends = self.arrays["key_end"]
        start = int(ends[record - 1]) if record else 0
        text = self.arrays["keys"][start : int(ends[record])].tobytes()
        return text.decode("utf-8", "replace")

    def members(self, record: int) -> dict[str, Member]:
        """Return where the members (files in the tar) of a record lie, by their suffix, as "jpg" or "json".

        The tar is not read.

        Args:
            record: The record's number in the shard, from 0.

        Raises:
            ValueError: If `record` is not less than `num_records`.
        """
        first, end = self.arrays["first"][record : record + 2].tolist()
        names = ("suffix", "offset", "size", "header_crc")
        columns = [self.arrays[name][first:end].tolist() for name in names]

        members = {}
        for suffix, offset, size, header_crc in zip(*columns, strict=True):
            members[self.facts["suffixes"][suffix]] = Member(offset, size, header_crc)
        return members

    def score(self, name: str) -> np.ndarray:
        """Return the score of each record, a number of its metadata under this name; NaN where it has none.

        Args:
            name: The name of the score; for a name that no record has, all are NaN.
        """
        without = np.full(self.num_records, np.nan, np.float32)
        return self.arrays.get(f"score.{name}", without)

    def save(self, path: Path) -> None:
        """Write the index to a file, whole or not at all; one that is there is replaced.

        Raises:
            WriteFailed: If the file cannot be written.
        """
        facts = json.dumps({"index_version": INDEX_VERSION, **self.facts})
        metadata = {"visllama": facts, "checksum": str(self._checksum(facts))}
        with replacing(path) as temporary:
            save_file(self.arrays, temporary, metadata)

    @classmethod
    def load(cls, path: Path) -> ShardIndex:
        """Read an index from the file that `save` wrote, and check it.

        Raises:
            ConfigError: If the file is not there, cannot be read, is damaged, or is of another version.
        """
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata()
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)

            facts = metadata["visllama"]
            index = cls(arrays, json.loads(facts))
            # The file may be damaged, or of a stranger: nothing is read by it before it is checked.
            is_good = index.facts["index_version"] == INDEX_VERSION
            is_good = is_good and metadata["checksum"] == str(index._checksum(facts))
            is_good = is_good and index._is_consistent()
        except FileNotFoundError as error:
            raise ConfigError(
                f"{path}: is not there: delete the folder's manifest.json, and both are made anew"
            ) from error
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error})") from error
        except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{path}: no index of a shard ({error}): delete it, and it is made anew") from error

        if not is_good:
            raise ConfigError(f"{path}: an index of another version, or damaged: delete it, and it is made anew")
        return index

    def _checksum(self, facts: str) -> int:
        checksum = zlib.crc32(facts.encode())
        for name in sorted(self.arrays):
            checksum = zlib.crc32(name.encode(), checksum)
            checksum = zlib.crc32(self.arrays[name].tobytes(), checksum)
        return checksum

    def _is_consistent(self) -> bool:
        """Return whether all places in this index lie within its arrays and the tar: a stranger may have written it."""
        arrays = self.arrays
        scores = {name: np.float32 for name in arrays if name.startswith("score.")}
        for name, dtype in {**_DTYPES, **scores}.items():
            if arrays[name].ndim != 1 or arrays[name].dtype != dtype:
                return False

        lengths = {len(arrays[name]) for name in ("key_end", "num_pairs", *scores)}
        if lengths != {self.num_records}:
            return False
        return self._are_facts_consistent() and self._are_members_consistent() and self._are_keys_consistent()

    def _are_members_consistent(self) -> bool:
        arrays = self.arrays
        first = arrays["first"].astype(np.int64)
        offset = arrays["offset"]
        size = arrays["size"].astype(np.uint64)
        num_members = len(offset)

        if not num_members == len(size) == len(arrays["suffix"]) == len(arrays["header_crc"]) == first[-1]:
            return False
        if first[0] != 0 or not (np.diff(first) > 0).all():
            return False
        if num_members == 0:
            return True

        total = self.facts["bytes"]
        # In this order, since a difference of unsigned numbers is never negative.
        lies_in_tar = offset.min() >= BLOCK and offset.max() <= total and (size <= total - offset).all()
        return bool(lies_in_tar and arrays["suffix"].max() < len(self.facts["suffixes"]))

    def _are_keys_consistent(self) -> bool:
        key_end = self.arrays["key_end"].astype(np.int64)
        is_sorted = (np.diff(key_end, prepend=0) >= 0).all()
        last_end = key_end[-1:].sum()  # 0 where there is no record
        return bool(is_sorted and last_end == len(self.arrays["keys"]))

    def _are_facts_consistent(self) -> bool:
        facts = self.facts
        if not all(type(facts[name]) is int for name in ("bytes", "crc", "mtime_ns")):
            return False
        if not all(type(suffix) is str and is_read(suffix) for suffix in facts["suffixes"]):
            return False
        for name in ("kinds", "faults"):
            if not all(type(count) is int for count in facts[name].values()):
                return False

        # Each becomes a `Damage`.
        return all([type(part) for part in fault] == [int, str, str, str] for fault in facts["listed"])

    def is_of(self, tar: Path) -> bool:
        """Return whether a tar has the size and the time of modification of the one that was indexed.

        Raises:
            OSError: If the tar is not there.
        """
        info = tar.stat()
        return info.st_size == self.facts["bytes"] and info.st_mtime_ns == self.facts["mtime_ns"]


def index_shard(tar: Path) -> ShardIndex:
    """Make the index of a tar by reading its headers and texts once; nothing is written.

    Damaged places and records that cannot be used raise nothing: they are listed in the index, as `ShardIndex.faults`.

    Raises:
        OSError: If the tar cannot be read, or becomes shorter meanwhile.
    """
    file = TarFile(tar)

    try:
        records = _Records(file)
        records.read()
    finally:
        os.close(file.descriptor)

    return _pack(records, {"bytes": file.size, "crc": file.crc, "mtime_ns": file.mtime_ns})


def _pack(records: _Records, facts: dict) -> ShardIndex:
    """Return the index of the records that were collected, without those whose members stand in two places."""
    # For each record, whether it is kept; below, the same for each member.
    keep = np.ones(len(records.keys), bool)
    keep[list(records.partial)] = False
    keys = [key.encode() for key, is_kept in zip(records.keys, keep.tolist(), strict=True) if is_kept]
    num_members = np.diff(np.frombuffer(records.first, np.uint32))
    keep_member = np.repeat(keep, num_members)

    arrays: dict[str, np.ndarray] = {}
    for name in ("offset", "size", "suffix", "header_crc"):
        arrays[name] = np.frombuffer(getattr(records, name), _DTYPES[name])[keep_member]
    arrays["first"] = np.cumsum([0, *num_members[keep]], dtype=np.uint32)
    arrays["key_end"] = np.cumsum([len(key) for key in keys], dtype=np.uint64)
    arrays["keys"] = np.frombuffer(b"".join(keys), np.uint8)
    arrays["num_pairs"] = np.frombuffer(records.num_pairs, np.uint32)[keep]
    for name, scores in records.scores.items():
        arrays[f"score.{name}"] = np.frombuffer(records.fill(scores), np.float32)[keep]

    kinds = Counter(np.frombuffer(records.kind, np.uint8)[keep].tolist())
    facts |= {
        "suffixes": list(records.suffixes),
        "kinds": {KINDS[kind]: count for kind, count in kinds.items()},
        "faults": dict(records.counts),
        "listed": records.listed,
    }
    return ShardIndex(arrays, facts)


def lost_keys(before: ShardIndex, after: ShardIndex) -> list[str]:
    """Return the keys of the records that index `before` holds and index `after` does not, in the order of `before`."""
    still_there = set(after.keys())
    return [key for key in before.keys() if key not in still_there]  # noqa: SIM118 (no mapping)
