"""A manifest of many shards, and what its order costs. No time is held to anything."""

from __future__ import annotations

from visllama.benchmark.scale import measure_order, write_manifest
from visllama.data.shards.manifest import MANIFEST, Manifest


def written(folder, num_shards: int, seed: int) -> Manifest:
    folder.mkdir()
    write_manifest(folder, num_shards, seed)
    return Manifest.parse(str(folder), (folder / MANIFEST).read_bytes())


def test_shards_have_about_ten_thousand_records_each(tmp_path):
    manifest = written(tmp_path / "a", 300, seed=1)
    records = manifest.num_records
    assert manifest.names[0] == "00000.tar"
    assert manifest.names[-1] == "00299.tar"
    assert records.min() >= 8_000
    assert records.max() < 12_000
    assert 9_700 < records.mean() < 10_300  # its standard error is 67
    assert manifest.num_pairs.tolist() == records.tolist()
    assert manifest.bytes.tolist() == (30_000 * records).tolist()
    assert manifest.kinds == {"captions": records.sum()}


def test_a_seed_makes_one_manifest(tmp_path):
    first = written(tmp_path / "a", 50, seed=1).num_records.tolist()
    assert written(tmp_path / "b", 50, seed=1).num_records.tolist() == first
    assert written(tmp_path / "c", 50, seed=2).num_records.tolist() != first


def test_the_order_of_a_manifest_is_measured(tmp_path):
    write_manifest(tmp_path, 100, seed=1)
    found = measure_order(tmp_path, seed=1)
    assert list(found) == ["start", "jump", "jump_of_8", "after", "memory_mb"]
    assert all(value >= 0 for value in found.values())
