"""The index of a shard: which records it holds, and where their bytes lie. One pass over the tar's headers.

A shard `X.tar` has its sidecar `X.tar.idx` (safetensors). Nothing that is damaged is passed over in silence: each fault
is counted by its reason, and the pass goes on behind it (Python's `tarfile` takes a damaged header for the end).
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from visllama.config import ConfigError
from visllama.data.faults import BadRecord
from visllama.data.record import image_suffixes, is_read, read_text

INDEX_VERSION = 1
BLOCK = 512
_ZEROS = bytes(BLOCK)
_WINDOW = 8192
_MOST_TEXT = 2**24
_MOST_LISTED = 1000
_SIZE_AND_CHECKSUM = struct.Struct("124x12s12x8s356x").unpack


class Fault(NamedTuple):
    """What is wrong at a place in a tar.

    Attributes:
        offset: Bytes from the tar's start.
        reason: "header" (not a tar header), "truncated", "zeros" (inside the archive), "no end", "trailing",
            "name" (leads out of the folder), "type" (a link or device), "suffix" (of no member that we read),
            "duplicate" (member), "split key", "no image", or "text".
        detail: The key or name, and what was found.
    """

    offset: int
    reason: str
    detail: str


class Member(NamedTuple):
    """A file in a tar; its header is the block before its bytes."""

    offset: int
    size: int


class _Entry(NamedTuple):
    key: str
    suffix: str
    member: Member


class _File:
    """A tar read at any place, a window at a time: most headers and texts stand near each other."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.descriptor).st_size
        self._start, self._window = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        first = offset - self._start
        if first < 0 or first + size > len(self._window):
            if size > _WINDOW:
                return os.pread(self.descriptor, size, offset)
            self._start, self._window, first = offset, os.pread(self.descriptor, _WINDOW, offset), 0
        return self._window[first : first + size]

    def next_header(self, offset: int) -> int:
        """Give where the next whole header begins, or the file's end."""
        while offset < self.size:
            chunk = os.pread(self.descriptor, 2**20 + BLOCK, offset)
            found = chunk.find(b"ustar")
            while found >= 0:
                begin = offset + found - 257
                if begin >= offset and begin % BLOCK == 0 and header_size(self.read(begin, BLOCK)) is not None:
                    return begin
                found = chunk.find(b"ustar", found + 1)
            offset += 2**20
        return self.size


def header_size(block: bytes) -> int | None:
    """Give the size that a tar header names; None where the block is no header, or its checksum is not right."""
    if len(block) < BLOCK:
        return None
    size, checksum = _SIZE_AND_CHECKSUM(block)
    try:
        # The sum of all bytes, the checksum's own as spaces. Adler's lower half is that sum (plus one, modulo 65521:
        # no sum of ASCII reaches it), ten times as fast as Python's.
        total = (zlib.adler32(block) & 0xFFFF) - 1 - sum(checksum) + 8 * 32
        if (total - int(checksum.rstrip(b"\0 "), 8)) % 65521:
            return None
        if size[0] & 0x80:  # base 256
            return int.from_bytes(size[1:], "big")
        return int(size.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        return None


def _walk(file: _File, crc: list[int]) -> Iterator[_Entry | Fault]:
    """Yield a tar's members that we read and its faults, in order; `crc[0]` becomes the headers' checksum."""
    at, zeros, given = 0, 0, {}
    while at + BLOCK <= file.size:
        block = file.read(at, BLOCK)
        if block == _ZEROS:
            zeros, at = zeros + 1, at + BLOCK
            continue
        size = header_size(block)
        if zeros and (size is not None or zeros < 2):
            yield Fault(at - zeros * BLOCK, "zeros", f"{zeros} blocks of zeros, and members after them")
        if size is None:
            behind = file.next_header(at + BLOCK)
            reason = "trailing" if zeros > 1 and behind == file.size else "header"
            yield Fault(at, reason, f"{behind - at} bytes are skipped")
            at, zeros, given = behind, 0 if behind < file.size or zeros < 2 else zeros, {}
            continue
        zeros, crc[0] = 0, zlib.crc32(block, crc[0])
        kind, data = block[156:157], at + BLOCK
        size = given.pop("size", size) if kind not in b"LKxg" else size
        if data + size > file.size:
            name = given.get("path") or _name(block)
            yield Fault(at, "truncated", f"{name}: {size} bytes from byte {data}, and the file ends at {file.size}")
            return
        at = data + -(-size // BLOCK) * BLOCK
        if kind in (b"L", b"K", b"x", b"g"):
            if size > _MOST_TEXT:
                yield Fault(data - BLOCK, "header", f"a name of {size} bytes")
            elif kind == b"L":
                given["path"] = file.read(data, size).rstrip(b"\0").decode("utf-8", "replace")
            elif kind == b"x":
                given |= _pax(file.read(data, size))
            continue
        name, given = given.get("path") or _name(block), {}
        if kind == b"5":
            continue
        yield _entry(name, kind, Member(data, size))
    if zeros < 2:
        yield Fault(file.size, "no end", "the tar ends without its two blocks of zeros: it may be cut")


def _entry(name: str, kind: bytes, member: Member) -> _Entry | Fault:
    header = member.offset - BLOCK
    if kind not in (b"0", b"\0", b"7"):
        return Fault(header, "type", f"{name}: a link, device or sparse file (type {kind!r}) is not read")
    if name[:1] == "/" or "\\" in name or (".." in name and ".." in name.split("/")):
        return Fault(header, "name", f"{name!r} leads out of its folder")
    name = name.removeprefix("./")
    dot = name.find(".", name.rfind("/") + 1)
    suffix = name[dot + 1 :].lower() if dot >= 0 else ""
    if not is_read(suffix):
        return Fault(header, "suffix", f"{name!r} is not read: images, txt and json are")
    return _Entry(name[:dot], suffix, member)


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0].decode("utf-8", "replace")
    prefix = block[345:500].split(b"\0", 1)[0].decode("utf-8", "replace") if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _pax(content: bytes) -> dict:
    found: dict = {}
    while content:
        length, _, rest = content.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(content):
            break
        name, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        if name == b"path":
            found["path"] = value.decode("utf-8", "replace")
        elif name == b"size" and value.isdigit():
            found["size"] = int(value)
        content = content[int(length) :]
    return found


class _Records:
    """Records as they are found in a tar, checked."""

    def __init__(self, file: _File) -> None:
        self.file, self.faults, self.seen = file, [], set()
        self.keys: list[str] = []
        self.members: list[dict[str, Member]] = []
        self.texts: list = []

    def add(self, key: str, entries: list[_Entry]) -> None:
        first = entries[0].member.offset - BLOCK
        members = {entry.suffix: entry.member for entry in entries}
        images = image_suffixes(members)
        if key in self.seen:
            return self._fault(first, "split key", f"{key}: members of it stand elsewhere too")
        self.seen.add(key)
        if len(members) < len(entries):
            return self._fault(first, "duplicate", f"{key}: two members of one suffix")
        try:
            text = read_text(
                {name: self._read(members[name]) for name in ("json", "txt") if name in members}, len(images)
            )
        except BadRecord as error:
            return self._fault(first, "text", f"record {key!r} {error.detail}")
        if text.kind != "conversations" and not images:
            return self._fault(first, "no image", f"record {key!r} has {text.kind} and no image")
        self.keys.append(key)
        self.members.append(members)
        self.texts.append(text)

    def _read(self, member: Member) -> bytes:
        if member.size > _MOST_TEXT:
            raise BadRecord("text", f"has a text of {member.size} bytes")
        return self.file.read(member.offset, member.size)

    def _fault(self, *fault) -> None:
        self.faults.append(Fault(*fault))


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
        return [text[a:b].decode() for a, b in zip([0, *ends], ends, strict=False)]

    def key(self, record: int) -> str:
        start = int(self.arrays["key_end"][record - 1]) if record else 0
        return self.arrays["keys"][start : int(self.arrays["key_end"][record])].tobytes().decode()

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
        facts = {"index_version": INDEX_VERSION, **self.facts}
        save_file(self.arrays, temporary, {"visllama": json.dumps(facts)})
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> ShardIndex:
        """Read a sidecar.

        Raises:
            ConfigError: If it is damaged, or of another version.
        """
        try:
            with safe_open(path, "np") as file:
                facts = json.loads(file.metadata()["visllama"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            found = cls(arrays, facts)
            whole = facts["index_version"] == INDEX_VERSION and found._is_consistent()
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: no index of a shard ({error}): delete it, and it is made anew") from error
        if not whole:
            raise ConfigError(f"{path}: an index of another version, or damaged: delete it, and it is made anew")
        return found

    def _is_consistent(self) -> bool:
        first, suffix = self.arrays["first"], self.arrays["suffix"]
        num_members = len(self.arrays["offset"])
        return bool(
            len(first) > 0
            and first[-1] == num_members == len(self.arrays["size"]) == len(suffix)
            and (np.diff(first.astype(np.int64)) > 0).all()
            and (not num_members or suffix.max() < len(self.facts["suffixes"]))
            and len(self.arrays["key_end"]) == self.num_records == len(self.arrays["num_pairs"])
        )

    def is_of(self, tar: Path) -> bool:
        """Tell whether the tar is still the one that was indexed, by its size and time."""
        found = tar.stat()
        return (found.st_size, found.st_mtime_ns) == (self.facts["bytes"], self.facts["mtime_ns"])


def index_shard(tar: Path) -> ShardIndex:
    """Read a shard's headers and texts, once.

    Raises:
        OSError: If it cannot be read.
    """
    file, crc = _File(tar), [0]
    try:
        records = _Records(file)
        key, group = None, []
        for found in _walk(file, crc):
            if isinstance(found, Fault):
                records.faults.append(found)
                continue
            if found.key != key and group:
                records.add(key, group)
                group = []
            key = found.key
            group.append(found)
        if group:
            records.add(key, group)
        size = file.size
    finally:
        os.close(file.descriptor)
    return _pack(records, {"bytes": size, "crc": crc[0], "mtime_ns": tar.stat().st_mtime_ns})


def _pack(records: _Records, facts: dict) -> ShardIndex:
    flat = [(suffix, member) for members in records.members for suffix, member in members.items()]
    suffixes = sorted({suffix for suffix, _ in flat})
    number = {suffix: i for i, suffix in enumerate(suffixes)}
    keys = [key.encode() for key in records.keys]
    arrays = {
        "first": np.cumsum([0, *(len(members) for members in records.members)], dtype=np.uint32),
        "offset": np.array([member.offset for _, member in flat], np.uint64),
        "size": np.array([member.size for _, member in flat], np.uint32),
        "suffix": np.array([number[suffix] for suffix, _ in flat], np.uint16),
        "key_end": np.cumsum([len(key) for key in keys], dtype=np.uint32),
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "num_pairs": np.array([text.num_pairs for text in records.texts], np.uint32),
    }
    for name in sorted({name for text in records.texts for name in text.scores}):
        values = [text.scores.get(name, np.nan) for text in records.texts]
        arrays[f"score.{name}"] = np.array(values, np.float64).astype(np.float32)
    facts |= {
        "suffixes": suffixes,
        "kinds": dict(Counter(text.kind for text in records.texts)),
        "faults": dict(Counter(fault.reason for fault in records.faults)),
        "listed": records.faults[:_MOST_LISTED],
    }
    return ShardIndex(arrays, facts)


def lost_keys(before: ShardIndex, after: ShardIndex) -> list[str]:
    """Name the records that an earlier index held and a later one does not."""
    now = set(after.keys())
    return [key for key in before.keys() if key not in now]  # noqa: SIM118 (no mapping)
