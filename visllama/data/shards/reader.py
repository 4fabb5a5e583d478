"""Read records out of shards by their indexes: local shards where they lie, remote ones through the cache."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from io import FileIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from visllama.data.shards.cache import ShardCache
from visllama.data.shards.index import Member, ShardIndex
from visllama.data.shards.manifest import Manifest
from visllama.data.shards.remote import is_remote
from visllama.data.shards.tar import BLOCK
from visllama.errors import BadRecord, ConfigError

_MOST_OPEN = 256


class _Open(NamedTuple):
    """A shard that is open, and its index."""

    file: BinaryIO | FileIO
    """The shard's file; as long as it is open, the cache keeps it."""
    index: ShardIndex


class ShardReader:
    """Read records of a manifest's shards, in any order; at most 256 shards stay open.

    A pickled copy opens files of its own, so it can be handed to another process.

    Args:
        manifest: The shards that are read.
        cache: Downloads remote shards; None where no shard is remote.
    """

    def __init__(self, manifest: Manifest, cache: ShardCache | None = None) -> None:
        self.manifest = manifest
        self.cache = cache
        self._open: OrderedDict[int, _Open] = OrderedDict()

    def __getstate__(self) -> dict:
        # Another process opens its own files.
        return self.__dict__ | {"_open": OrderedDict()}

    @property
    def _remote_cache(self) -> ShardCache:
        assert self.cache is not None, "a manifest with remote shards needs a cache"
        return self.cache

    def index(self, shard: int) -> ShardIndex:
        """Read the index of a shard from the index's file, downloaded if it is remote, anew at each call.

        Args:
            shard: The shard's number in the manifest, from 0.

        Raises:
            ConfigError: If the index is not there or damaged, or its counts and checksum differ from the manifest's.
            IndexError: If the number is too large.
        """
        path = self.manifest.index(shard)
        index = self._load(path)
        if not self._is_of(shard, index) and is_remote(path):
            # The cache may hold the index of an older state of the folder.
            self._remote_cache.path(path).unlink(missing_ok=True)
            index = self._load(path)

        if not self._is_of(shard, index):
            raise ConfigError(f"{path}: is not of the shard that manifest.json names: delete both, they are made anew")
        return index

    def opened_index(self, shard: int) -> ShardIndex:
        """Return the index of a shard, and keep the index in memory and the shard open for later reads.

        A remote shard is downloaded as well as its index; `index` downloads the index alone.

        Args:
            shard: The shard's number in the manifest, from 0.

        Raises:
            ConfigError: If the shard or its index cannot be read, or the index is not of this shard.
            IndexError: If the number is too large.
        """
        return self._opened(shard).index

    def _load(self, path: str) -> ShardIndex:
        if is_remote(path):
            # An index's size stands nowhere else.
            with self._remote_cache.open(path, None) as file:
                return ShardIndex.load(Path(file.name))
        return ShardIndex.load(Path(path))

    def _is_of(self, shard: int, index: ShardIndex) -> bool:
        """Return whether an index has the counts and the checksum that the manifest has for a shard."""
        columns = (self.manifest.bytes, self.manifest.num_records, self.manifest.num_pairs, self.manifest.crc)
        expected = tuple(int(column[shard]) for column in columns)
        return index.row[:4] == expected

    def read(self, shard: int, record: int) -> tuple[str, dict[str, bytes]]:
        """Return a record's key, and the contents of its members (files in the tar) by suffix, as "jpg" or "json".

        Args:
            shard: The shard's number in the manifest, from 0; a remote shard is downloaded.
            record: The record's number in the shard's index, from 0.

        Raises:
            BadRecord: If the bytes of the record do not lie in the shard at the places that the index names.
            ConfigError: If the shard or its index cannot be read.
            IndexError: If one of the numbers is too large.
        """
        opened = self._opened(shard)
        key = opened.index.key(record)
        # Errors name the shard too: keys of different shards may be equal.
        name = f"{self.manifest.shard(shard)}: record {key!r}"

        descriptor = opened.file.fileno()
        members = opened.index.members(record)
        contents = {suffix: _content(descriptor, member, name) for suffix, member in members.items()}
        return key, contents

    def _opened(self, shard: int) -> _Open:
        if shard in self._open:
            # The least recently used shard stands first, and is closed first.
            self._open.move_to_end(shard)
            return self._open[shard]

        path = self.manifest.shard(shard)
        try:
            if is_remote(path):
                file = self._remote_cache.open(path, int(self.manifest.bytes[shard]))
            else:
                file = open(path, "rb", buffering=0)  # noqa: SIM115 (stays open)
            self._open[shard] = _Open(file, self.index(shard))
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be read ({error.strerror or error}), and was indexed: put it back, or index its "
                f"folder anew by visllama prepare source=shards"
            ) from error

        if len(self._open) > _MOST_OPEN:
            _, oldest = self._open.popitem(last=False)
            oldest.file.close()
        return self._open[shard]


def _content(descriptor: int, member: Member, name: str) -> bytes:
    """Read the bytes of a member (a file in the tar).

    Its header is read with it: the bytes are the member's own only if that is still the header that was indexed.

    Raises:
        BadRecord: If the header is another one, or the file ends before the member does.
        ConfigError: If the file cannot be read at all.
    """
    start = member.offset - BLOCK
    try:
        block = os.pread(descriptor, BLOCK + member.size, start)
    except OSError as error:
        # A disk or a network fails, and would with the next record too: this record is not to blame.
        raise ConfigError(f"{name}: cannot be read ({error.strerror or error})") from error

    if zlib.crc32(block[:BLOCK]) != member.header_crc:
        raise BadRecord("header", f"{name}: the header at byte {start} is not the one that was indexed")
    if len(block) < BLOCK + member.size:
        raise BadRecord("cut", f"{name}: the file ends before its {member.size} bytes do")
    return block[BLOCK:]
