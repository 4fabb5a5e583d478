"""Find the members (files) of a tar and their bytes by its headers, and report every place that is damaged.

Each damaged place is reported, and the walk goes on behind it. (Python's `tarfile` takes a damaged header for the end.)
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
"""The size of a tar's blocks in bytes: a header is one, and contents fill whole ones."""
Found = tuple[str, str, int, int, int]
"""A member of a record: its key, its suffix, its content's offset and size in bytes, its header's checksum.

No class: making an object of each takes longer than finding it.
"""
_ZEROS = bytes(BLOCK)
_WINDOW = 4096
_MOST_BYTES = 2**28
"""The largest size of a member in bytes; a picture of as many pixels as are decoded has less."""
_MOST_EXTENDED = 2**20
_MOST_NAME = 4096
_FIELDS = struct.Struct("100s24x12s12x8sc100x6s82x155s12x").unpack
_FILES = frozenset((b"0", b"\0", b"7"))
_BODILESS = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
_EXTENDED = frozenset((b"L", b"K", b"x", b"X", b"g"))
_TIME = {size: b"%d mtime=" % size for size in range(10, 100)}
"""The first bytes of an extended header that names a time and nothing else, by the header's size."""


class Damage(NamedTuple):
    """A damaged place in a tar, or a member or record that cannot be used.

    Attributes:
        offset: Bytes from the tar's start.
        reason: "header" (no tar header, or one that cannot be read), "truncated" (a member that is larger than the rest
            of the tar), "zeros" (blocks of zeros between members), "no end" (the blocks of zeros that end a tar are
            missing), "trailing" (bytes behind the tar's end), "name" (a member's name leads out of the folder, or is
            not valid), "type" (a link, device or sparse file), "size" (a member of more than 256 MiB), "suffix" (a file
            that belongs to no record), "duplicate" (a record has two members of one suffix), "split key" (members of
            one key stand in two places), "torn" (a record beside a damaged place, where members of it may have stood),
            "no image" (a record that needs an image and has none), or "text" (the record's text cannot be used).
        detail: What is wrong, in words.
        key: The record's key; empty where it is not known. The key of a damaged header is a guess.
    """

    offset: int
    reason: str
    detail: str
    key: str = ""

    def tell(self, tar: str) -> str:
        """Return one line for people: the tar's path or URL (`tar`), then `detail`, `offset` and `reason`."""
        return f"{tar}: {self.detail} (byte {self.offset}, {self.reason})"


class TarFile:
    """A tar that is open for reading at any place; nearby bytes are read together, and kept for the next calls.

    Args:
        path: The tar. Whoever makes a TarFile closes its `descriptor` by `os.close`.

    Attributes:
        descriptor: The file descriptor.
        size: The size of the tar in bytes when it was opened.
        mtime_ns: The time of modification of the tar when it was opened.
        crc: A CRC-32 checksum, 0 at first. `walk` updates it with each header, and an indexing caller with each text.
    """

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        info = os.fstat(self.descriptor)
        self.size = info.st_size
        self.mtime_ns = info.st_mtime_ns
        self.crc = 0

        # The bytes of the window, and their place in the tar.
        self._start = 0
        self._end = 0
        self._window = b""

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes of the tar from byte `offset` on.

        Raises:
            OSError: If the tar cannot be read, or ends before byte `offset + size`.
        """
        if offset < self._start or offset + size > self._end:
            window = os.pread(self.descriptor, max(size, _WINDOW), offset)
            if len(window) < size:
                raise OSError(f"it became shorter while it was read: no {size} bytes at byte {offset}")

            self._start = offset
            self._end = offset + len(window)
            self._window = window

        first = offset - self._start
        return self._window[first : first + size]

    def next_header(self, offset: int) -> int:
        """Return the offset of the next header that is not damaged; the tar's `size` where there is none.

        Args:
            offset: Where the search begins, in bytes from the tar's start. It goes by blocks of `BLOCK` bytes from
                there, so `offset` has to be a multiple of `BLOCK`.
        """
        length = _WINDOW
        while offset < self.size:
            chunk = os.pread(self.descriptor, length, offset)
            whole_blocks = len(chunk) // BLOCK * BLOCK
            blocks = np.frombuffer(chunk, np.uint8, whole_blocks).reshape(-1, BLOCK)

            # Few blocks of a picture have octal digits where a header has its checksum.
            digits = blocks[:, 148:154]
            is_octal = ((digits | 7) == 0x37) | (digits == 0x20) | (digits == 0)
            likely = is_octal.all(axis=1) & digits.any(axis=1)

            for row in np.flatnonzero(likely).tolist():
                if header_size(blocks[row].tobytes()) is not None:
                    return offset + row * BLOCK

            if len(chunk) < length:
                break
            offset += length
            # Most headers are near; where none is, larger chunks are read faster.
            length = min(2 * length, 2**20)
        return self.size


def header_size(block: bytes) -> int | None:
    """Return the size in bytes of a member's content, read from the member's header.

    Args:
        block: The header's 512 bytes. For bytes of another length, or no valid header, None is returned.
    """
    if len(block) != BLOCK:
        return None
    return _size(block, block[124:136], block[148:156])


def _size(block: bytes, size: bytes, checksum: bytes) -> int | None:
    """Return the number in a header's field `size`; None where the header's checksum or the field is not right."""
    if zlib.adler32(block) & 0xFFFF != _adler(checksum):
        return None

    digits = size.strip(b"\0 ")
    # `isdigit`, since `int` takes signs, underscores and "0o" too: a negative size would lead the walk backwards.
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:  # an 8 or a 9
            return None

    # A number in base 256, for large files; 0xff would begin a negative number.
    if size[0] == 0x80:
        return int.from_bytes(size[1:], "big")
    return None if digits else 0


@lru_cache(maxsize=4096)
def _adler(checksum: bytes) -> int | None:
    """Return the lower half of Adler's checksum that a header has if its own checksum is right.

    That half is the sum of all bytes (plus one, modulo 65521, which no sum of ASCII reaches), and is computed ten times
    as fast as by Python's `sum`. The header's own checksum is the sum too, but with spaces in place of the checksum
    itself. The result is kept, since few checksums differ in a tar.

    Args:
        checksum: The header's own checksum, in octal digits; None is returned where it is no such number.
    """
    digits = checksum.strip(b"\0 ")
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        return None
    return (int(digits, 8) - 8 * 32 + sum(checksum) + 1) % 65521


def walk(file: TarFile) -> Iterator[Found | Damage | None]:
    """Yield the members and the damaged places of a tar, from its start to its end.

    Args:
        file: The tar. Its checksum `file.crc` is updated with each header that is read.

    Yields:
        `Found`, a tuple of key, suffix, offset, size and header's checksum, for each member (file) of a record;
        `Damage` for each damaged place, for each file that belongs to no record, and for each that is refused; None,
        most often after a `Damage`, at a place where members may be missing that cannot be reported.

    Raises:
        OSError: If the tar cannot be read, or becomes shorter meanwhile.
    """
    at = 0
    num_zeros = 0
    # What an extended header before it says of the next member.
    extended: dict = {}
    while at + BLOCK <= file.size:
        block = file.read(at, BLOCK)
        name_field, size_field, checksum, kind, magic, prefix = _FIELDS(block)
        size = _size(block, size_field, checksum)

        if size is None and block == _ZEROS:
            num_zeros += 1
            at += BLOCK
            extended = {}
            continue

        # Two blocks of zeros or more are the end, unless a header comes behind them; a single one never is.
        if num_zeros and (size is not None or num_zeros < 2):
            yield Damage(at - num_zeros * BLOCK, "zeros", f"{num_zeros} blocks of zeros, and members after them")
            # Two tars in one, or a place that was lost: they look the same.
            yield None

        if extended.get("path"):
            name = extended["path"]
        elif kind in _EXTENDED:
            name = ""
        else:
            name = _name(name_field, prefix, magic)

        if size is None:
            behind = file.next_header(at + BLOCK)
            if num_zeros > 1 and behind == file.size:
                yield Damage(at, "trailing", f"{behind - at} bytes after the end")
                return

            key, suffix = _split(name)
            yield Damage(at, "header", f"{behind - at} bytes are skipped", key if is_read(suffix) else "")
            yield None

            at = behind
            num_zeros = 0
            extended = {}
            if at == file.size:
                return
            continue

        num_zeros = 0
        header = at
        data = at + BLOCK
        file.crc = zlib.crc32(block, file.crc)

        if kind in _BODILESS:
            # Links, devices and folders have no content, whatever the header says.
            size = 0
        elif kind not in _EXTENDED:
            size = extended.get("size", size)

        if data + size > file.size:
            detail = f"{name[:_MOST_NAME]!r} has {size} bytes from byte {data}, and the file ends at {file.size}"
            yield Damage(header, "truncated", detail, _split(name)[0])
            # The size may be wrong, and members may follow all the same.
            at = file.next_header(data)
            extended = {}
            if at == file.size:
                return
            yield None
            continue

        # The content fills whole blocks.
        at = data + (size + BLOCK - 1) // BLOCK * BLOCK
        if kind in _EXTENDED:
            extended |= _read_extended(file, kind, data, size)
            continue

        # Before 1988, a folder was a file whose name ends with a slash.
        is_folder = kind == b"5" or (kind == b"\0" and name[-1:] == "/")
        if extended.get("broken"):
            yield Damage(header, "header", f"{name!r}: its long name or size cannot be read", _split(name)[0])
            yield None
        elif not is_folder:
            member_kind = b"S" if extended.get("sparse") else kind
            yield _member(name, member_kind, data, size, zlib.crc32(block))

        extended = {}

    if num_zeros < 2:
        yield Damage(file.size, "no end", "the tar ends without its two blocks of zeros: it may be cut")
        if num_zeros == 0:
            # It may be cut between two members of a record.
            yield None
    elif at < file.size:
        yield Damage(at, "trailing", f"{file.size - at} bytes after the end")


def _member(name: str, kind: bytes, offset: int, size: int, crc: int) -> Found | Damage:
    """Return a member of a record, or a `Damage` that says why it is not read."""
    header = offset - BLOCK
    # One quick test clears nearly all names; `_is_bad_name` is asked only about the others.
    is_plain = name.isprintable() and "\\" not in name and ".." not in name and name[:1] != "/"
    if not (is_plain and len(name) <= _MOST_NAME) and _is_bad_name(name):
        return Damage(header, "name", f"{name[:_MOST_NAME]!r} leads out of its folder, or is no name")

    key, suffix = _split(name)
    if kind not in _FILES:
        return Damage(header, "type", f"{name!r}: a link, device or sparse file (type {kind!r}) is not read", key)
    if not is_read(suffix) or key[-1:] in ("", "/"):
        return Damage(header, "suffix", f"{name!r} is not read: images, txt and json are")

    if size > _MOST_BYTES:
        return Damage(header, "size", f"{name!r} has {size} bytes, and the most are {_MOST_BYTES}", key)
    return key, suffix, offset, size, crc


def _is_bad_name(name: str) -> bool:
    """Return whether a name leads out of its folder, holds control characters, or is too long."""
    # Spaces of other scripts are not printable, but do no harm.
    has_control = any(ord(letter) < 32 or ord(letter) == 127 for letter in name)
    leads_out = "\\" in name or ".." in name.split("/") or name[:1] == "/"
    return has_control or leads_out or len(name) > _MOST_NAME


def _name(name: bytes, prefix: bytes, magic: bytes) -> str:
    """Return the name in a header; a long one is parted between two fields."""
    name = name.split(b"\0", 1)[0]
    if magic == b"ustar\0" and prefix[0]:
        folder = prefix.split(b"\0", 1)[0]
        name = folder + b"/" + name

    return name.decode("utf-8", "replace")


def _split(name: str) -> tuple[str, str]:
    """Return a name's key, and its suffix in lower case: they part at the first dot behind the folders."""
    name = name.removeprefix("./")
    dot = name.find(".", name.rfind("/") + 1)

    if dot < 0:
        return name, ""
    return name[:dot], name[dot + 1 :].lower()


def _read_extended(file: TarFile, kind: bytes, offset: int, size: int) -> dict:
    """Return what an extended header says of the next member, as far as it does.

    That is its `path`, its `size`, and whether it is `sparse`; `broken` is set where the header cannot be read.
    """
    # The other kinds name a link's target, or speak of all members, as git's commit does.
    if kind not in (b"L", b"x", b"X"):
        return {}

    if size > _MOST_EXTENDED:
        return {"broken": True}

    content = file.read(offset, size)
    file.crc = zlib.crc32(content, file.crc)

    if kind == b"L":
        return {"path": content.split(b"\0", 1)[0].decode("utf-8", "replace")}
    if content[:9] == _TIME.get(size) and content[-1:] == b"\n":
        # webdataset writes such a header before each member: this test takes a third of the time of reading it.
        return {}

    extended: dict = {}
    at = 0
    # Entries such as "30 mtime=1700000000.123456789\n", which begin with their own length.
    while at < size:
        space = content.find(b" ", at, at + 10)
        length = content[at:space] if space > 0 else b""
        end = at + int(length) if length.isdigit() else 0
        name, equals, value = content[space + 1 : end - 1].partition(b"=")
        if not space < end <= size or not equals or content[end - 1 : end] != b"\n":
            return {"broken": True}

        if name == b"path":
            extended["path"] = value.decode("utf-8", "replace")
        elif name == b"size":
            if not value.isdigit() or len(value) > 20:
                return {"broken": True}
            extended["size"] = int(value)
        elif name.startswith(b"GNU.sparse."):
            extended["sparse"] = True

        at = end
    return extended
