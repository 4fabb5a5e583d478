"""The walk over a tar's headers, at which nothing that is damaged is passed over in silence.

Each fault is told, and the walk goes on behind it. (Python's `tarfile` takes a damaged header for the end.)
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visllama.data.record import is_read

BLOCK = 512
Found = tuple[str, str, int, int, int]
"""A member that we read: its key and suffix, where its bytes begin, how many they are, its header's checksum. No class:
making an object of each takes longer than finding it."""
_ZEROS = bytes(BLOCK)
_WINDOW = 4096
_MOST_BYTES = 2**28
"""Of a member; a picture of as many pixels as are decoded has less."""
_MOST_EXTENDED = 2**20
_MOST_NAME = 4096
_FIELDS = struct.Struct("100s24x12s12x8sc100x6s82x155s12x").unpack
_FILES = frozenset((b"0", b"\0", b"7"))
_BODILESS = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
_EXTENDED = frozenset((b"L", b"K", b"x", b"X", b"g"))
_TIME = {size: b"%d mtime=" % size for size in range(10, 100)}
"""How the content of an extended header begins that says a time and nothing else, by its size."""


class Damage(NamedTuple):
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

    def tell(self, tar: str) -> str:
        """Return what is damaged, and where."""
        return f"{tar}: {self.detail} (byte {self.offset}, {self.reason})"


class TarFile:
    """A tar read at any place, a window at a time: most headers and texts stand near each other."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        found = os.fstat(self.descriptor)
        self.size, self.mtime_ns, self.crc = found.st_size, found.st_mtime_ns, 0
        self._start, self._end, self._window = 0, 0, b""

    def read(self, offset: int, size: int) -> bytes:
        if offset < self._start or offset + size > self._end:
            window = os.pread(self.descriptor, max(size, _WINDOW), offset)
            if len(window) < size:
                raise OSError(f"it became shorter while it was read: no {size} bytes at byte {offset}")
            self._start, self._end, self._window = offset, offset + len(window), window
        first = offset - self._start
        return self._window[first : first + size]

    def next_header(self, offset: int) -> int:
        """Return where the next whole header begins, or the file's end."""
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
    """Return the size that a tar header names; None where the block is no header, or its checksum is not right."""
    return _size(block, block[124:136], block[148:156]) if len(block) == BLOCK else None


def _size(block: bytes, size: bytes, checksum: bytes) -> int | None:
    if zlib.adler32(block) & 0xFFFF != _adler(checksum):
        return None
    digits = size.strip(b"\0 ")
    # `isdigit`, since `int` takes signs, underscores and "0o" too: a negative size would lead the walk backwards.
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:  # an 8 or a 9
            return None
    if size[0] == 0x80:  # base 256; 0xff would begin a negative number
        return int.from_bytes(size[1:], "big")
    return None if digits else 0


@lru_cache(maxsize=4096)
def _adler(checksum: bytes) -> int | None:
    """Return the lower half that Adler's checksum of a header has if the header's own is right.

    It is the sum of all bytes (plus one, modulo 65521: no sum of ASCII reaches it), ten times as fast as Python's. The
    header's own is that sum with itself as spaces; few differ in a tar.
    """
    digits = checksum.strip(b"\0 ")
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        return None
    return (int(digits, 8) - 8 * 32 + sum(checksum) + 1) % 65521


def walk(file: TarFile) -> Iterator[Found | Damage | None]:
    """Yield a tar's members that we read, its faults, and None where some may be lost."""
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
            yield Damage(at - zeros * BLOCK, "zeros", f"{zeros} blocks of zeros, and members after them")
            yield None  # two tars in one, or a place that was lost: they look the same
        name = said.get("path") or ("" if kind in _EXTENDED else _name(name, prefix, magic))
        if size is None:
            behind = file.next_header(at + BLOCK)
            if zeros > 1 and behind == file.size:
                yield Damage(at, "trailing", f"{behind - at} bytes after the end")
                return
            key, suffix = _split(name)
            yield Damage(at, "header", f"{behind - at} bytes are skipped", key if is_read(suffix) else "")
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
            yield Damage(header, "truncated", detail, _split(name)[0])
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
            yield Damage(header, "header", f"{name!r}: its long name or size cannot be read", _split(name)[0])
            yield None
        elif kind != b"5" and (kind != b"\0" or name[-1:] != "/"):  # folders; before 1988 by their names
            yield _member(name, b"S" if said.get("sparse") else kind, data, size, zlib.crc32(block))
        said = {}
    if zeros < 2:
        yield Damage(file.size, "no end", "the tar ends without its two blocks of zeros: it may be cut")
        if not zeros:  # between two members of a record, perhaps
            yield None
    elif at < file.size:
        yield Damage(at, "trailing", f"{file.size - at} bytes after the end")


def _member(name: str, kind: bytes, offset: int, size: int, crc: int) -> Found | Damage:
    header = offset - BLOCK
    if not name.isprintable() or "\\" in name or ".." in name or name[:1] == "/" or len(name) > _MOST_NAME:
        # Spaces of other scripts are not "printable", and no harm.
        control = any(ord(letter) < 32 or ord(letter) == 127 for letter in name)
        if control or "\\" in name or ".." in name.split("/") or name[:1] == "/" or len(name) > _MOST_NAME:
            return Damage(header, "name", f"{name[:_MOST_NAME]!r} leads out of its folder, or is no name")
    key, suffix = _split(name)
    if kind not in _FILES:
        return Damage(header, "type", f"{name!r}: a link, device or sparse file (type {kind!r}) is not read", key)
    if not is_read(suffix) or key[-1:] in ("", "/"):
        return Damage(header, "suffix", f"{name!r} is not read: images, txt and json are")
    if size > _MOST_BYTES:
        return Damage(header, "size", f"{name!r} has {size} bytes, and the most are {_MOST_BYTES}", key)
    return key, suffix, offset, size, crc


def _name(name: bytes, prefix: bytes, magic: bytes) -> str:
    name = name.split(b"\0", 1)[0]
    if magic == b"ustar\0" and prefix[0]:
        name = prefix.split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "replace")


def _split(name: str) -> tuple[str, str]:
    """Return the key and the suffix, in lower case: they part at the first dot of the last name."""
    name = name.removeprefix("./")
    dot = name.find(".", name.rfind("/") + 1)
    return (name[:dot], name[dot + 1 :].lower()) if dot >= 0 else (name, "")


def _read_extended(file: TarFile, kind: bytes, offset: int, size: int) -> dict:
    """Read what a header says of the next member: its path, its size, whether it is sparse."""
    if kind not in (b"L", b"x", b"X"):  # the name of a link's target; of all members, as git's commit
        return {}
    if size > _MOST_EXTENDED:
        return {"broken": True}
    content = file.read(offset, size)
    file.crc = zlib.crc32(content, file.crc)
    if kind == b"L":
        return {"path": content.split(b"\0", 1)[0].decode("utf-8", "replace")}
    if content[:9] == _TIME.get(size) and content[-1:] == b"\n":
        return {}  # what webdataset writes before each member: a third of the cost of reading it
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
