"""Tars written header by header, and what an index finds in them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from visllama.data.shards.index import ShardIndex, index_shard
from visllama.data.shards.tar import BLOCK

WORDS = b'{"captions": ["words"]}'
END = bytes(2 * BLOCK)


def header(name: str | bytes, size: int | bytes = 0, kind: bytes = b"0", **fields: bytes) -> bytes:
    """Make a tar header with any fields, its checksum right."""
    block = bytearray(BLOCK)
    named = name if isinstance(name, bytes) else name.encode()
    size = size if isinstance(size, bytes) else b"%011o\0" % size
    known = {"name": named[:100], "mode": b"0000644\0", "size": size, "kind": kind, "magic": b"ustar\x0000"}
    at = {"name": 0, "mode": 100, "size": 124, "checksum": 148, "kind": 156, "magic": 257, "prefix": 345}
    for field, value in (known | fields).items():
        block[at[field] : at[field] + len(value)] = value
    if "checksum" not in fields:
        block[148:156] = b"        "
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def file(name: str | bytes, content: bytes = WORDS, **fields: bytes) -> bytes:
    return header(name, fields.pop("size", len(content)), **fields) + content + bytes(-len(content) % BLOCK)


def record(key: str, **fields: bytes) -> bytes:
    return file(f"{key}.jpg", b"\xff\xd8\xff of " + key.encode(), **fields) + file(f"{key}.json", **fields)


def index(path: Path, content: bytes) -> ShardIndex:
    (path / "x.tar").write_bytes(content)
    found = index_shard(path / "x.tar")
    found.save(path / "x.tar.idx")
    again = ShardIndex.load(path / "x.tar.idx")
    assert again.facts["listed"] == [list(fault) for fault in found.faults]
    assert [again.members(i) for i in range(again.num_records)] == [found.members(i) for i in range(found.num_records)]
    return again


def reasons(found: ShardIndex) -> list[tuple[str, str]]:
    assert Counter(fault.reason for fault in found.faults) == found.facts["faults"]
    return [(fault.reason, fault.key) for fault in found.faults]


def places(found: ShardIndex) -> dict[str, tuple[int, int]]:
    return {
        f"{key}.{suffix}": member[:2]
        for i, key in enumerate(found.keys())
        for suffix, member in found.members(i).items()
    }


def pax(content: bytes) -> bytes:
    return file("PaxHeader", content, kind=b"x")
