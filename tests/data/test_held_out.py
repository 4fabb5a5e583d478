"""What is held out of training: the same records wherever and whenever they are asked for, and few indexes read."""

from __future__ import annotations

import numpy as np
import pytest
from webdataset import TarWriter

from tests.support.tars import keys, picture, scored, write
from visllama.data.held_out import MOST_RECORDS, MOST_SHARDS, held_out_rows
from visllama.data.shards.manifest import Manifest
from visllama.data.shards.reader import ShardReader
from visllama.data.shards.source import ShardSource
from visllama.data.source import count_items
from visllama.errors import ConfigError


def manifest_of(sizes: list[int], folder: str = "data") -> Manifest:
    names = [f"{number:05d}.tar" for number in range(len(sizes))]
    records = np.array(sizes, np.int64)
    crc = np.random.default_rng(3).integers(0, 2**32, len(sizes))
    return Manifest(folder, names, 30_000 * records, records, records, crc)


def test_one_tar_serves_training_and_validation_by_different_records(tmp_path):
    path = write(tmp_path / "a.tar", 40)
    train, val = keys(ShardSource("train", path, val_fraction=0.1)), keys(ShardSource("val", path, val_fraction=0.1))
    assert len(val) == 4 and sorted(train + val) == [f"{i:04d}" for i in range(40)]
    assert val != sorted(train + val)[:4], "chosen by hash, not the first"
    with pytest.raises(ConfigError, match=r"split=test val_path=null: what path=.* holds out serves validation"):
        ShardSource("test", path, val_fraction=0.1)
    assert len(keys(ShardSource("val", path))) == 1, "by default 1 %, and at least one record"


def test_many_tars(tmp_path):
    for i in range(5):
        write(tmp_path / f"{i}.tar", 8, 8 * i)
    train, val = (ShardSource(split, str(tmp_path), val_fraction=0.3) for split in ("train", "val"))
    assert len(val) == 12 and len(train) == 28 and not set(keys(train)) & set(keys(val))
    assert len({key.partition("/")[0] for key in keys(val)}) > 2, "spread over the tars"
    assert (count_items(train), count_items(val)) == (56, 24), "two captions a record"
    assert int(sum(train.shard_sizes)) == 28 and len(train.shard_sizes) == 5


def test_items_are_those_of_the_records_that_are_read(tmp_path):
    """Held-out records among others shift neither the items of training nor their own."""
    texts = [[f"caption {i} of {record}" for i in range(1 + record % 4)] for record in range(40)]
    with TarWriter(str(tmp_path / "a.tar")) as tar:
        for record, captions in enumerate(texts):
            tar.write({"__key__": f"{record:04d}", "jpg": picture(), "json": {"captions": captions}})
    seen = []
    for split in ("train", "val"):
        source = ShardSource(split, str(tmp_path / "a.tar"), val_fraction=0.3)
        places = [source.find_item(item) for item in range(count_items(source))]
        seen += [source[place.record]["captions"][place.index] for place in places]
    assert sorted(seen) == sorted(caption for captions in texts for caption in captions)


def test_a_filter_keeps_to_training_records(tmp_path):
    path = scored(tmp_path / "a.tar", [{"clip": i / 40} for i in range(40)])
    plain = ShardSource("train", path, val_fraction=0.25)
    train, val = (ShardSource(s, path, val_fraction=0.25, filter={"clip": [0.5, None]}) for s in ("train", "val"))
    held_out = keys(ShardSource("val", path, val_fraction=0.25))
    assert keys(val) == held_out and len(val) == 10
    assert keys(train) == [key for key in keys(plain) if int(key) >= 20]


def test_it_rests_on_the_contents_alone(tmp_path):
    """Not on the folder, or the names, or what was drawn before; a checkpoint is of the set that it was trained on."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    here, there = write(tmp_path / "here" / "a.tar", 40), tmp_path / "there" / "b.tar"
    there.write_bytes((tmp_path / "here" / "a.tar").read_bytes())
    first = ShardSource("train", here, val_fraction=0.2)
    np.random.seed(7)
    second = ShardSource("train", str(there), val_fraction=0.2)
    assert keys(first) == keys(second) and first.fingerprint == second.fingerprint
    others = [ShardSource("train", here, val_fraction=fraction) for fraction in (0.1, None)]
    assert len({first.fingerprint, *(source.fingerprint for source in others)}) == 3


def test_at_most_so_many_indexes_are_read_of_many_small_shards(tmp_path, monkeypatch):
    for i in range(MOST_SHARDS + 16):
        write(tmp_path / f"{i:03d}.tar", 2, 2 * i)
    ShardSource("train", str(tmp_path), val_fraction=None)  # they are indexed now
    read, index = [], ShardReader.index
    monkeypatch.setattr(ShardReader, "index", lambda self, shard: read.append(shard) or index(self, shard))
    for split in ("train", "val"):
        read.clear()
        source = ShardSource(split, str(tmp_path), val_fraction=0.9)
        assert len(read) == len(set(read)) == MOST_SHARDS
        assert len(source) == {"val": 2 * MOST_SHARDS, "train": 2 * 16}[split], "no more than lie in so many shards"


def test_of_hundreds_of_millions_of_records_few_are_held_out():
    rows = held_out_rows(manifest_of([10_000] * 70_000), 0.01)
    assert sum(map(len, rows.values())) == MOST_RECORDS and len(rows) == MOST_SHARDS
    sizes = [len(found) for found in rows.values()]
    # 156 a shard, and five standard deviations of what chance does (12.5 each)
    assert min(sizes) > 156 - 63 and max(sizes) < 156 + 63
    for found in rows.values():
        assert (np.diff(found) > 0).all() and found[0] >= 0 and found[-1] < 10_000


def test_empty_shards_and_added_ones():
    some = manifest_of([0, 500, 500, 0])
    assert set(held_out_rows(some, 0.1)) <= {1, 2}
    assert held_out_rows(manifest_of([0]), 0.1) == {}


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.01), (2, 0.9), (3, 0.99)])
def test_a_side_that_would_be_empty_is_refused(tmp_path, count, fraction):
    path = write(tmp_path / "a.tar", count)
    for split in ("train", "val"):
        with pytest.raises(
            ConfigError, match=rf"val_fraction={fraction} holds out {count} of {count} record.*val_path="
        ):
            ShardSource(split, path, val_fraction=fraction)
    assert len(ShardSource("train", path, val_fraction=None)) == count


@pytest.mark.parametrize("fraction", [0, None])
@pytest.mark.parametrize("split", ["val", "test"])
def test_where_nothing_is_held_out_nothing_is_judged(tmp_path, split, fraction):
    path = write(tmp_path / "a.tar")
    with pytest.raises(
        ConfigError, match=r"give val_path=FILE, or val_fraction=0\.01; .*trainer\.val_check_interval=null"
    ):
        ShardSource(split, path, val_fraction=fraction)
    assert len(ShardSource("train", path, val_fraction=fraction)) == 4
    assert len(ShardSource(split, None, path, val_fraction=fraction)) == 4, "tars of their own need no training tars"


@pytest.mark.parametrize("fraction", [1, -0.1, "some", True, float("nan")])
def test_a_share_is_a_number_below_one(tmp_path, fraction):
    with pytest.raises(ConfigError, match=r"val_fraction=.*at least 0 and less than 1"):
        ShardSource("train", write(tmp_path / "a.tar"), val_fraction=fraction)


def test_where_records_come_from_is_said(tmp_path):
    path, other = write(tmp_path / "a.tar", 40), write(tmp_path / "b.tar")
    assert ShardSource("val", path, val_fraction=0.1).origin == f"4 of 40 records held out of {path}"
    assert ShardSource("train", path, val_fraction=0.1).origin == f"{path} without 4 held-out records"
    assert ShardSource("val", path, other).origin == other and ShardSource("train", path, other).origin == path
