"""Which record goes into which shard."""

from __future__ import annotations

from tests.prepare.made import plan


def test_a_record_larger_than_a_shard_has_its_own(tmp_path):
    assert [len(shard) for shard in plan(tmp_path, 3, 1000).shards] == [1, 1, 1]
