"""Manifests: made of indexes, on demand; noticed when they are stale; read at once when they are not."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from tests.support.tars import write
from visllama.data.shards import manifest as module
from visllama.data.shards.manifest import MANIFEST, Manifest, local_manifest
from visllama.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tars").mkdir()
    for i in range(3):
        write(tmp_path / "tars" / f"{i}.tar", 4 + i, 10 * i)
    return tmp_path / "tars"


def indexed(monkeypatch) -> list[str]:
    """Return a list that fills with the names of the tars that are indexed from now on."""
    seen, real = [], module.index_shard
    monkeypatch.setattr(module, "index_shard", lambda tar: seen.append(tar.name) or real(tar))
    return seen


def test_counts_are_those_of_the_shards(folder, tmp_path):
    found = local_manifest(str(folder), tmp_path)
    assert found.names == ["0.tar", "1.tar", "2.tar"] and found.num_records.tolist() == [4, 5, 6]
    assert found.num_pairs.tolist() == [8, 10, 12] and found.kinds == {"captions": 15} and found.faults == {}
    assert found.bytes.tolist() == [(folder / name).stat().st_size for name in found.names]
    again = Manifest.parse(str(folder), (folder / MANIFEST).read_bytes())
    assert (
        again.sha256 == found.sha256 and again.shard(1) == f"{folder}/1.tar" and again.index(1) == f"{folder}/1.tar.idx"
    )


def test_what_is_indexed_is_not_indexed_again(folder, tmp_path, monkeypatch):
    seen = indexed(monkeypatch)
    local_manifest(str(folder), tmp_path)
    assert sorted(seen) == ["0.tar", "1.tar", "2.tar"]
    local_manifest(str(folder), tmp_path)
    (folder / MANIFEST).unlink()
    local_manifest(str(folder), tmp_path)
    local_manifest(f"{folder}/*.tar", tmp_path)
    assert len(seen) == 3, "by the manifest, then by the indexes"


def test_a_tar_that_changed_is_indexed_anew_and_what_it_lost_is_told(folder, tmp_path, monkeypatch, capsys):
    before = local_manifest(str(folder), tmp_path)
    seen = indexed(monkeypatch)
    write(folder / "1.tar", 3, 10)
    write(folder / "3.tar", 1, 90)
    after = local_manifest(str(folder), tmp_path)
    assert sorted(seen) == ["1.tar", "3.tar"] and after.num_records.tolist() == [4, 3, 6, 1]
    assert before.sha256 != after.sha256
    said = capsys.readouterr().out
    assert "1.tar: changed since it was indexed: 2 of its 5 records are gone: 0013, 0014" in said


def test_where_nothing_can_be_written_beside_the_tars_the_cache_has_the_indexes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who may write anywhere
    found = local_manifest(str(folder), tmp_path / "cache")
    assert sorted(p.name for p in folder.iterdir()) == ["0.tar", "1.tar", "2.tar"]
    assert found.index(2).startswith(str(tmp_path / "cache")) and found.index(2).endswith("2.tar.idx")
    assert found.sha256 == Manifest.of("x", found.names, module.index_tars(
        [folder / n for n in found.names], [tmp_path / f"{n}.idx" for n in found.names])).sha256  # fmt: skip


def test_shards_lie_elsewhere_and_indexes_here(tmp_path):
    names = ["https://h/a/00000.tar", "https://h/b/00000.tar"]
    found = Manifest(str(tmp_path), names, *[np.ones(2, np.int64)] * 4)
    assert found.shard(0) == names[0] and found.index(0) != found.index(1)
    found.save()
    for number in range(2):
        Path(found.index(number)).touch()
    assert local_manifest(str(tmp_path), tmp_path).names == names, "no tar is looked for"


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"index_version": 99}', '{"index_version": 1, "shards": {"name": ["a"], "bytes": [1, 2]}}'],
)
def test_a_damaged_manifest_is_refused(folder, tmp_path, content):
    (folder / MANIFEST).write_text(content)
    with pytest.raises(ConfigError, match=r"tars/manifest\.json: no manifest of shards"):
        local_manifest(str(folder), tmp_path)


def test_a_manifest_of_fewer_items_than_records_is_refused(folder, tmp_path):
    """The order of items rests on these counts, and a manifest may come from elsewhere."""
    found = local_manifest(str(folder), tmp_path)
    found.num_pairs[1] = -3
    found.save()
    with pytest.raises(ConfigError, match="a shard of it holds fewer items than records"):
        local_manifest(str(folder), tmp_path)


def test_many_processes_index_alike_and_bars_are_for_long_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SERIAL_BYTES", 0)
    several = local_manifest(str(folder), tmp_path, num_workers=2)
    for path in folder.glob("*.idx"):
        path.unlink()
    (folder / MANIFEST).unlink()
    monkeypatch.undo()
    assert local_manifest(str(folder), tmp_path).sha256 == several.sha256


def _index(folder, cache, results) -> None:
    results.put(local_manifest(str(folder), cache).sha256)


def test_ranks_that_start_together_do_not_disturb_each_other(folder, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_index, args=(folder, tmp_path, results)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    assert len({results.get(timeout=60) for _ in ranks}) == 1
    for rank in ranks:
        rank.join()
    hidden = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert hidden == [".index.lock"], "no temporary file is left"
