"""Read records out of shards by their indexes: local ones as they lie, remote ones through the node's cache."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from visllama.data.shards.cache import ShardCache
from visllama.data.shards.index import Member, ShardIndex
from visllama.data.shards.manifest import Manifest
from visllama.data.shards.remote import is_remote
from visllama.data.shards.tar import BLOCK
from visllama.errors import BadRecord, ConfigError

_MOST_OPEN = 256


class _Open(NamedTuple):
    file: object
    """Of the shard; as long as it is open, the cache keeps it."""
    index: ShardIndex


class ShardReader:
    """Read records of a manifest's shards, in any order, from any process.

    Args:
        manifest: Which shards.
        cache: Fetches what is remote; None where nothing is.
    """

    def __init__(self, manifest: Manifest, cache: ShardCache | None = None) -> None:
        self.manifest, self.cache = manifest, cache
        self._open: OrderedDict[int, _Open] = OrderedDict()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": OrderedDict()}  # another process opens its own

    def index(self, shard: int) -> ShardIndex:
        """Return a shard's index."""
        path = self.manifest.index(shard)
        index = self._load(path)
        if not self._is_of(shard, index) and is_remote(path):
            self.cache.path(path).unlink(missing_ok=True)  # of an older state of the folder
            index = self._load(path)
        if not self._is_of(shard, index):
            raise ConfigError(f"{path}: is not of the shard that manifest.json names: delete both, they are made anew")
        return index

    def opened_index(self, shard: int) -> ShardIndex:
        """Return the index of a shard that is to be read now: shard and index stay open.

        Raises:
            ConfigError: If the shard or its index is not there.
        """
        return self._opened(shard).index

    def _load(self, path: str) -> ShardIndex:
        if is_remote(path):
            with self.cache.open(path, None) as file:
                return ShardIndex.load(Path(file.name))
        return ShardIndex.load(Path(path))

    def _is_of(self, shard: int, index: ShardIndex) -> bool:
        manifest = self.manifest
        return index.row[:4] == tuple(
            int(column[shard]) for column in (manifest.bytes, manifest.num_records, manifest.num_pairs, manifest.crc)
        )

    def read(self, shard: int, record: int) -> tuple[str, dict[str, bytes]]:
        """Return a record's key, and its members' contents by their suffix.

        Raises:
            BadRecord: If its bytes are not where the index says.
            ConfigError: If the shard or its index is not there.
        """
        opened = self._opened(shard)
        key = opened.index.key(record)
        name = f"{self.manifest.shard(shard)}: record {key!r}"
        descriptor = opened.file.fileno()
        contents = {
            suffix: _content(descriptor, member, name) for suffix, member in opened.index.members(record).items()
        }
        return key, contents

    def _opened(self, shard: int) -> _Open:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        path = self.manifest.shard(shard)
        try:
            if is_remote(path):
                file = self.cache.open(path, int(self.manifest.bytes[shard]))
            else:
                file = open(path, "rb", buffering=0)  # noqa: SIM115 (stays open)
            self._open[shard] = _Open(file, self.index(shard))
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be read ({error.strerror or error}), and was indexed: put it back, or index its "
                f"folder anew by visllama prepare source=shards"
            ) from error
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)[1].file.close()
        return self._open[shard]


def _content(descriptor: int, member: Member, name: str) -> bytes:
    """Read a member, its header with it: only if that is still the one that was indexed, are the bytes its own."""
    try:
        block = os.pread(descriptor, BLOCK + member.size, member.offset - BLOCK)
    except OSError as error:  # of a disk or a network that fails: nothing that the next record would be free of
        raise ConfigError(f"{name}: cannot be read ({error.strerror or error})") from error
    if zlib.crc32(block[:BLOCK]) != member.header_crc:
        raise BadRecord("header", f"{name}: the header at byte {member.offset - BLOCK} is not the one that was indexed")
    if len(block) < BLOCK + member.size:
        raise BadRecord("cut", f"{name}: the file ends before its {member.size} bytes do")
    return block[BLOCK:]
