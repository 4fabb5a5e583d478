"""Records by their index, out of shards that may have changed since."""

from __future__ import annotations

import gc
import multiprocessing
import os
import tarfile
from pathlib import Path

import pytest

from tests.support.tars import write
from visllama.data.shards import reader as module
from visllama.data.shards.index import ShardIndex, index_shard
from visllama.data.shards.manifest import Manifest, local_manifest
from visllama.data.shards.reader import ShardReader
from visllama.data.shards.tar import BLOCK
from visllama.errors import BadRecord, ConfigError


@pytest.fixture
def reader(tmp_path) -> ShardReader:
    for i in range(3):
        write(tmp_path / f"{i}.tar", 5, 5 * i)
    return ShardReader(local_manifest(str(tmp_path), tmp_path))


def read_all(reader: ShardReader) -> list[tuple[str, dict[str, bytes]]]:
    return [reader.read(shard, record) for shard in range(3) for record in range(5)]


def change(reader: ShardReader, at: int, content: bytes) -> None:
    with open(reader.manifest.shard(1), "r+b") as file:
        file.seek(at)
        file.write(content)


def test_contents_are_those_of_the_tar(reader):
    for shard in range(3):
        with tarfile.open(reader.manifest.shard(shard)) as tar:
            whole = {info.name: tar.extractfile(info).read() for info in tar}
        found = {}
        for record in (4, 0, 2, 1, 3):
            key, contents = reader.read(shard, record)
            found |= {f"{key}.{suffix}": content for suffix, content in contents.items()}
        assert found == whole and len(whole) == 10


def test_a_header_that_changed_is_told_from_the_one_that_was_indexed(reader):
    place = reader.index(1).members(2)["json"]
    for content in (b"?", bytes(BLOCK), b"\xff" * BLOCK):
        change(reader, place.offset - BLOCK, content)
        with pytest.raises(BadRecord, match=r"1\.tar: record '0007'") as error:
            reader.read(1, 2)
        assert error.value.reason == "header"
    assert reader.read(1, 1)[0] == "0006" and reader.read(1, 3)[0] == "0008", "its neighbours are as they were"


def test_a_file_that_was_cut_gives_the_records_before(reader):
    place = reader.index(1).members(2)["json"]
    os.truncate(reader.manifest.shard(1), place.offset + 3)
    with pytest.raises(BadRecord, match="record '0007'") as error:
        reader.read(1, 2)
    assert error.value.reason == "cut"
    with pytest.raises(BadRecord) as error:
        reader.read(1, 3)
    assert error.value.reason == "header"
    assert [reader.read(1, record)[0] for record in (0, 1)] == ["0005", "0006"]


@pytest.mark.parametrize("name", ["1.tar", "1.tar.idx"])
def test_a_shard_or_an_index_that_is_gone_is_named(reader, name):
    (Path(reader.manifest.folder) / name).unlink()
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        reader.read(1, 0)
    assert reader.read(0, 0)[0] == "0000"


def test_places_beyond_the_file_are_a_bad_record(tmp_path):
    """As after the tar was cut, by an index that fitted it once."""
    write(tmp_path / "a.tar", 2)
    found = index_shard(tmp_path / "a.tar")
    found.arrays["offset"] = found.arrays["offset"] + 2**40
    found.facts["bytes"] += 2**41
    found.save(tmp_path / "a.tar.idx")
    reader = ShardReader(Manifest.of(str(tmp_path), ["a.tar"], [ShardIndex.load(tmp_path / "a.tar.idx").row]))
    with pytest.raises(BadRecord) as error:
        reader.read(0, 0)
    assert error.value.reason == "header"


def _compare(reader: ShardReader, whole: list, pipe) -> None:
    pipe.send((len(reader._open), read_all(reader) == whole))


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_another_process_reads_the_same(reader, start):
    """Both at once: they share no position in a file."""
    whole = read_all(reader)
    context = multiprocessing.get_context(start)
    ours, theirs = context.Pipe()
    process = context.Process(target=_compare, args=(reader, whole, theirs))
    process.start()
    assert all(read_all(reader) == whole for _ in range(20))
    assert ours.poll(60)
    num_open, same = ours.recv()
    process.join(60)
    assert same and process.exitcode == 0 and num_open == (0 if start == "spawn" else 3)


def test_few_files_are_open_and_the_last_used_stay_so(reader, monkeypatch):
    monkeypatch.setattr(module, "_MOST_OPEN", 2)
    gc.collect()  # what other tests left open
    descriptors = len(os.listdir("/proc/self/fd"))
    for shard in (0, 1, 0, 2):
        reader.read(shard, 0)
    assert [*reader._open] == [0, 2] and len(os.listdir("/proc/self/fd")) == descriptors + 2
    assert len(read_all(reader)) == 15 and len(reader._open) == 2
