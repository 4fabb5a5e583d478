"""The index of a shard: which records it holds, and where their bytes lie. One pass over the tar's headers and texts.

A shard `X.tar` has its sidecar `X.tar.idx` (safetensors). Nothing that is damaged is passed over in silence: each fault
is counted by its reason, and the pass goes on behind it (Python's `tarfile` takes a damaged header for the end).
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from visllama.config import ConfigError
from visllama.data.faults import BadRecord
from visllama.data.record import KINDS, Text, image_suffixes, is_read, read_text

INDEX_VERSION = 1
BLOCK = 512
_ZEROS = bytes(BLOCK)
_WINDOW = 4096
_MOST_BYTES = 2**28
"""Of a member; a picture of as many pixels as are decoded has less."""
_MOST_TEXT = 2**22
"""Bytes of a text: JSON of nothing but brackets takes 25 times as many in memory."""
_MOST_EXTENDED = 2**20
_MOST_NAME = 4096
_MOST_LISTED = 1000
_MOST_SCORES = 64
_FIELDS = struct.Struct("100s24x12s12x8sc100x6s82x155s12x").unpack
_FILES = frozenset((b"0", b"\0", b"7"))
_BODILESS = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
_EXTENDED = frozenset((b"L", b"K", b"x", b"X", b"g"))
_TEXTS = ("json", "txt")
_DTYPES = {
    "first": np.uint32,
    "offset": np.uint64,
    "size": np.uint32,
    "suffix": np.uint16,
    "key_end": np.uint64,
    "keys": np.uint8,
    "num_pairs": np.uint32,
}


class Fault(NamedTuple):
    """What is wrong at a place in a tar.

    Attributes:
        offset: Bytes from the tar's start.
        reason: "header" (no tar header, or one not to be understood), "truncated", "zeros" (inside the archive),
            "no end", "trailing", "name" (leads out of the folder, or is no name), "type" (a link or device), "size"
            (more than any picture), "suffix" (of no member that we read), "duplicate" (member), "split key", "torn"
            (beside a damaged place, where members of it may have stood), "no image", or "text".
        detail: What was found.
        key: The record's; empty where it is not known. Of a damaged header, what it seems to be.
    """

    offset: int
    reason: str
    detail: str
    key: str = ""


class Member(NamedTuple):
    """A file in a tar; its header is the block before its bytes."""

    offset: int
    size: int


class _File:
    """A tar read at any place, a window at a time: most headers and texts stand near each other."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        found = os.fstat(self.descriptor)
        self.size, self.mtime_ns, self.crc = found.st_size, found.st_mtime_ns, 0
        self._start, self._window = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        first = offset - self._start
        if first < 0 or first + size > len(self._window):
            window = os.pread(self.descriptor, max(size, _WINDOW), offset)
            if len(window) < size:
                raise OSError(f"it became shorter while it was read: no {size} bytes at byte {offset}")
            self._start, self._window, first = offset, window, 0
        return self._window[first : first + size]

    def next_header(self, offset: int) -> int:
        """Give where the next whole header begins, or the file's end."""
        length = _WINDOW
        while offset < self.size:
            chunk = os.pread(self.descriptor, length, offset)
            blocks = np.frombuffer(chunk, np.uint8, len(chunk) // BLOCK * BLOCK).reshape(-1, BLOCK)
            # Few blocks of a picture have octal digits where a header has its checksum.
            digits = blocks[:, 148:154]
            likely = ((digits | 7) == 0x37) | (digits == 0x20) | (digits == 0)
            for row in np.flatnonzero(likely.all(axis=1) & digits.any(axis=1)).tolist():
                if header_size(blocks[row].tobytes()) is not None:
                    return offset + row * BLOCK
            if len(chunk) < length:
                break
            offset, length = offset + length, min(2 * length, 2**20)
        return self.size


def header_size(block: bytes) -> int | None:
    """Give the size that a tar header names; None where the block is no header, or its checksum is not right."""
    return _size(block, block[124:136], block[148:156]) if len(block) == BLOCK else None


def _size(block: bytes, size: bytes, checksum: bytes) -> int | None:
    stored, digits = checksum.strip(b"\0 "), size.strip(b"\0 ")
    # `isdigit`, since `int` takes signs, underscores and "0o" too: a negative size would lead the walk backwards.
    if not stored.isdigit():
        return None
    try:
        # The sum of all bytes, the checksum's own as spaces. Adler's lower half is that sum (plus one, modulo 65521: no
        # sum of ASCII reaches it), ten times as fast as Python's.
        if ((zlib.adler32(block) & 0xFFFF) - 1 - sum(checksum) + 8 * 32 - int(stored, 8)) % 65521:
            return None
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:  # an 8 or a 9
        return None
    if size[0] == 0x80:  # base 256; 0xff would begin a negative number
        return int.from_bytes(size[1:], "big")
    return None if digits else 0


def _walk(file: _File) -> Iterator[tuple[str, str, int, int] | Fault | None]:
    """Yield a tar's members that we read (key, suffix, offset, size), its faults, and None where some may be lost."""
    at = zeros = 0
    said: dict = {}  # of the next member, by a header of its own
    while at + BLOCK <= file.size:
        block = file.read(at, BLOCK)
        name, size, checksum, kind, magic, prefix = _FIELDS(block)
        size = _size(block, size, checksum)
        if size is None and block == _ZEROS:
            zeros, at, said = zeros + 1, at + BLOCK, {}
            continue
        if zeros and (size is not None or zeros < 2):
            yield Fault(at - zeros * BLOCK, "zeros", f"{zeros} blocks of zeros, and members after them")
            yield None  # two tars in one, or a place that was lost: they look the same
        name = said.get("path") or _name(name, prefix, magic)
        if size is None:
            behind = file.next_header(at + BLOCK)
            if zeros > 1 and behind == file.size:
                yield Fault(at, "trailing", f"{behind - at} bytes after the end")
                return
            key, suffix = _split(name)
            yield Fault(at, "header", f"{behind - at} bytes are skipped", key if is_read(suffix) else "")
            yield None
            at, zeros, said = behind, 0, {}
            if at == file.size:
                return
            continue
        zeros, header, data = 0, at, at + BLOCK
        file.crc = zlib.crc32(block, file.crc)
        if kind in _BODILESS:  # whatever the header says
            size = 0
        elif kind not in _EXTENDED:
            size = said.get("size", size)
        if data + size > file.size:
            detail = f"{name[:_MOST_NAME]!r} has {size} bytes from byte {data}, and the file ends at {file.size}"
            yield Fault(header, "truncated", detail, _split(name)[0])
            at, said = file.next_header(data), {}
            if at == file.size:
                return
            yield None
            continue
        at = data + (size + BLOCK - 1) // BLOCK * BLOCK
        if kind in _EXTENDED:
            said |= _read_extended(file, kind, data, size)
            continue
        if said.get("broken"):
            yield Fault(header, "header", f"{name!r}: its long name or size cannot be read", _split(name)[0])
            yield None
        elif kind != b"5" and (kind != b"\0" or name[-1:] != "/"):  # folders; before 1988 by their names
            yield _member(name, b"S" if said.get("sparse") else kind, data, size)
        said = {}
    if zeros < 2:
        yield Fault(file.size, "no end", "the tar ends without its two blocks of zeros: it may be cut")
        if not zeros:  # between two members of a record, perhaps
            yield None
    elif at < file.size:
        yield Fault(at, "trailing", f"{file.size - at} bytes after the end")


def _member(name: str, kind: bytes, offset: int, size: int) -> tuple[str, str, int, int] | Fault:
    header = offset - BLOCK
    if not name.isprintable() or "\\" in name or ".." in name or name[:1] == "/" or len(name) > _MOST_NAME:
        # Spaces of other scripts are not "printable", and no harm.
        control = any(ord(letter) < 32 or ord(letter) == 127 for letter in name)
        if control or "\\" in name or ".." in name.split("/") or name[:1] == "/" or len(name) > _MOST_NAME:
            return Fault(header, "name", f"{name[:_MOST_NAME]!r} leads out of its folder, or is no name")
    key, suffix = _split(name)
    if kind not in _FILES:
        return Fault(header, "type", f"{name!r}: a link, device or sparse file (type {kind!r}) is not read", key)
    if not is_read(suffix) or key[-1:] in ("", "/"):
        return Fault(header, "suffix", f"{name!r} is not read: images, txt and json are")
    if size > _MOST_BYTES:
        return Fault(header, "size", f"{name!r} has {size} bytes, and the most are {_MOST_BYTES}", key)
    return key, suffix, offset, size


def _name(name: bytes, prefix: bytes, magic: bytes) -> str:
    name = name.split(b"\0", 1)[0]
    if magic == b"ustar\0" and prefix[0]:
        name = prefix.split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "replace")


def _split(name: str) -> tuple[str, str]:
    """Give the key and the suffix, in lower case: they part at the first dot of the last name."""
    name = name.removeprefix("./")
    dot = name.find(".", name.rfind("/") + 1)
    return (name[:dot], name[dot + 1 :].lower()) if dot >= 0 else (name, "")


def _read_extended(file: _File, kind: bytes, offset: int, size: int) -> dict:
    """Read what a header says of the next member: its path, its size, whether it is sparse."""
    if kind not in (b"L", b"x", b"X"):  # the name of a link's target; of all members, as git's commit
        return {}
    if size > _MOST_EXTENDED:
        return {"broken": True}
    content = file.read(offset, size)
    file.crc = zlib.crc32(content, file.crc)
    if kind == b"L":
        return {"path": content.split(b"\0", 1)[0].decode("utf-8", "replace")}
    found: dict = {}
    at = 0
    while at < size:  # "30 mtime=1700000000.123456789\n"
        space = content.find(b" ", at, at + 10)
        length = content[at:space] if space > 0 else b""
        end = at + int(length) if length.isdigit() else 0
        name, equals, value = content[space + 1 : end - 1].partition(b"=")
        if not space < end <= size or not equals or content[end - 1 : end] != b"\n":
            return {"broken": True}
        if name == b"path":
            found["path"] = value.decode("utf-8", "replace")
        elif name == b"size":
            if not value.isdigit() or len(value) > 20:
                return {"broken": True}
            found["size"] = int(value)
        elif name.startswith(b"GNU.sparse."):
            found["sparse"] = True
        at = end
    return found


class _Records:
    """Records as they are found in a tar, checked."""

    def __init__(self, file: _File) -> None:
        self.file, self.spoiled = file, set()
        # Of each key the record's row, or -1 where it is none; and the rows that more members were found of.
        self.seen: dict[str, int] = {}
        self.partial: set[int] = set()
        self.counts: Counter[str] = Counter()
        self.listed: list[Fault] = []
        self.keys: list[str] = []
        self.suffixes: dict[str, int] = {}
        # Numbers side by side: an object each costs more than reading it did.
        self.first, self.num_pairs, self.kind = array("I", [0]), array("I"), array("B")
        self.offset, self.size, self.suffix = array("Q"), array("I"), array("H")
        self.scores: dict[str, array] = {}

    def read(self) -> None:
        """Read them all."""
        key, group, torn = None, [], False
        for found in _walk(self.file):
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

    def _fault(self, fault: Fault) -> None:
        self.counts[fault.reason] += 1
        if len(self.listed) < _MOST_LISTED:
            self.listed.append(fault)

    def _add(self, key: str, group: list[tuple[str, str, int, int]], torn: bool) -> None:
        places = {suffix: (offset, size) for _, suffix, offset, size in group}
        known, row = key in self.seen, self.seen.setdefault(key, -1)
        reason, detail = "text", ""
        if known:
            reason, detail = "split key", "has members elsewhere too"
            if row >= 0 and not {self.suffixes.get(suffix) for suffix in places} <= self._suffixes(row):
                self.partial.add(row)
        elif key in self.spoiled:
            return  # a fault of a member names it
        elif len(places) < len(group):
            reason, detail = "duplicate", "has two members of one suffix"
        elif torn:
            reason, detail = "torn", "is beside a damaged place: members of it may have stood there"
        else:
            try:
                images = image_suffixes(places)
                text = read_text({name: self._text(*places[name]) for name in _TEXTS if name in places}, len(images))
                if images or text.kind == "conversations":
                    return self._keep(key, group, text)
                reason, detail = "no image", f"has {text.kind} and no image"
            except BadRecord as error:
                detail = error.detail
        self._fault(Fault(group[0][2] - BLOCK, reason, f"record {key!r} {detail}", key))

    def _keep(self, key: str, group: list[tuple[str, str, int, int]], text: Text) -> None:
        for name, value in text.scores.items():
            if name in self.scores or len(self.scores) < _MOST_SCORES:
                self.fill(self.scores.setdefault(name, array("f"))).append(value)
        for _, suffix, offset, size in group:
            self.suffix.append(self.suffixes.setdefault(suffix, len(self.suffixes)))
            self.offset.append(offset)
            self.size.append(size)
        self.first.append(len(self.offset))
        self.seen[key] = len(self.keys)
        self.keys.append(key)
        self.num_pairs.append(text.num_pairs)
        self.kind.append(KINDS.index(text.kind))

    def _suffixes(self, row: int) -> set[int]:
        return {*self.suffix[self.first[row] : self.first[row + 1]]}

    def fill(self, scores: array) -> array:
        """Give the records before this one a NaN, those that have no such score."""
        if len(scores) < len(self.keys):
            scores.extend(repeat(math.nan, len(self.keys) - len(scores)))
        return scores

    def _text(self, offset: int, size: int) -> bytes:
        if size > _MOST_TEXT:
            raise BadRecord("text", f"has a text of {size} bytes, and the most are {_MOST_TEXT}")
        content = self.file.read(offset, size)
        self.file.crc = zlib.crc32(content, self.file.crc)
        return content


class ShardIndex:
    """The records of one shard: their keys, where their members' bytes lie, and what their metadata say in numbers.

    Args:
        arrays: `first` (members before each record, one more at the end), `offset` and `size` (bytes, a member),
            `suffix` (into `facts["suffixes"]`), `key_end` and `keys` (UTF-8), `num_pairs` (a record), `score.NAME`.
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
        """Things to learn: image-caption pairs, questions, conversations."""
        return int(self.arrays["num_pairs"].sum())

    @property
    def faults(self) -> list[Fault]:
        return [Fault(*fault) for fault in self.facts["listed"]]

    def keys(self) -> list[str]:
        ends, text = self.arrays["key_end"].tolist(), self.arrays["keys"].tobytes()
        return [text[a:b].decode("utf-8", "replace") for a, b in zip([0, *ends], ends, strict=False)]

    def key(self, record: int) -> str:
        start = int(self.arrays["key_end"][record - 1]) if record else 0
        return self.arrays["keys"][start : int(self.arrays["key_end"][record])].tobytes().decode("utf-8", "replace")

    def members(self, record: int) -> dict[str, Member]:
        """Give a record's members by their suffix."""
        first, last = self.arrays["first"][record : record + 2].tolist()
        suffixes = self.facts["suffixes"]
        return {
            suffixes[suffix]: Member(offset, size)
            for suffix, offset, size in zip(
                self.arrays["suffix"][first:last].tolist(),
                self.arrays["offset"][first:last].tolist(),
                self.arrays["size"][first:last].tolist(),
                strict=True,
            )
        }

    def score(self, name: str) -> np.ndarray:
        """Give a number of each record's metadata; NaN where a record has none of that name."""
        return self.arrays.get(f"score.{name}", np.full(self.num_records, np.nan, np.float32))

    def save(self, path: Path) -> None:
        """Write the sidecar, whole or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        facts = json.dumps({"index_version": INDEX_VERSION, **self.facts})
        save_file(self.arrays, temporary, {"visllama": facts, "checksum": str(self._checksum(facts))})
        os.replace(temporary, path)

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
        except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
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
        """Tell whether reading by it stays within it and the tar, whoever wrote it."""
        arrays, facts, num_records = self.arrays, self.facts, self.num_records
        scores = {name: np.float32 for name in arrays if name.startswith("score.")}
        if any(arrays[name].ndim != 1 or arrays[name].dtype != kind for name, kind in {**_DTYPES, **scores}.items()):
            return False
        first, key_end = arrays["first"].astype(np.int64), arrays["key_end"].astype(np.int64)
        offset, size = arrays["offset"], arrays["size"].astype(np.uint64)
        total = facts["bytes"]
        return bool(
            {len(arrays[name]) for name in ("key_end", "num_pairs", *scores)} == {num_records}
            and len(offset) == len(size) == len(arrays["suffix"]) == first[-1]
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
        """Tell whether the tar is still the one that was indexed, by its size and time."""
        found = tar.stat()
        return (found.st_size, found.st_mtime_ns) == (self.facts["bytes"], self.facts["mtime_ns"])


def index_shard(tar: Path) -> ShardIndex:
    """Read a shard's headers and texts, once.

    Raises:
        OSError: If it cannot be read, or becomes shorter meanwhile.
    """
    file = _File(tar)
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
    arrays = {name: np.frombuffer(getattr(found, name), _DTYPES[name])[kept] for name in ("offset", "size", "suffix")}
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
