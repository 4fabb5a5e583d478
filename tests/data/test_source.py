"""What a source says of its records, their items and its shards is read once, and refused where it cannot be."""

from __future__ import annotations

import pytest

from tests.support.made_sources import Counted, Records
from visllama.data.items import ItemPlace
from visllama.data.source import count_items, shard_sizes
from visllama.errors import ConfigError


@pytest.mark.parametrize(("count", "sizes"), [(3, [1, 1, 1]), (65_536, [1] * 65_536), (65_537, [2] * 32_768 + [1])])
def test_a_source_without_shards_is_cut_into_blocks(count, sizes):
    source = Records(range(count))
    assert shard_sizes(source) == sizes and source.shard_items == sizes
    assert Counted([3] * count).shard_items.tolist() == [3 * size for size in sizes]


def test_a_source_that_does_not_count_has_one_item_a_record():
    source = Records(["a", "b"])
    assert count_items(source) == 2 and source.find_item(1) == ItemPlace(1, None, None)


@pytest.mark.parametrize("counts", [[1, 2, -1], [1, 2], [[1, 2, 3]], [1.0, 2.0, 3.0], ["a", "b", "c"], [0, 0, 0]])
def test_counts_that_cannot_be_are_refused(counts):
    class Wrong(Counted):
        def __len__(self):
            return 3

    with pytest.raises(ConfigError, match=r"Wrong\.item_counts: must be the number of items in each of its 3 records"):
        count_items(Wrong(counts))


def test_shards_that_do_not_hold_all_records_are_refused():
    with pytest.raises(ConfigError, match=r"Counted\.shard_sizes: makes 1 records, and the source has 2"):
        _ = Counted([1, 2], sizes=[1]).shard_items


def test_items_are_counted_once_before_there_are_loading_processes():
    """What each process counted by itself, each would hold by itself."""

    class Asked(Records):
        times = 0

        @property
        def item_counts(self):
            Asked.times += 1
            return [2, 1, 3]

    source = Asked(["a", "b", "c"])
    assert sum(source.shard_items) == 6
    asked = Asked.times
    assert [source.find_item(item).record for item in range(6)] == [0, 0, 1, 2, 2, 2]
    assert Asked.times == asked
