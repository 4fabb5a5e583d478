"""Items, as a property: over uneven counts, shards, batches, ranks and windows, each comes exactly once a pass."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.made_shards import cut
from tests.support.made_sources import Counted
from visllama.data.order import Order
from visllama.data.source import count_items


def all_items(counts) -> list[tuple[int, int]]:
    return [(record, index) for record, count in enumerate(counts) for index in range(count)]


def filled_up(counts: list[int], batch: int) -> list[int]:
    """Add records of one item until the items make whole batches."""
    return counts + [1] * (-sum(counts) % batch)


UNEVEN = st.lists(st.integers(1, 11), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(UNEVEN, st.sampled_from([1, 2, 6, 8, 64, 96]), st.integers(1, 9), st.integers(1, 20), st.integers(0, 2**40),
       st.integers(1, 4), st.sampled_from([0, 2**16]))  # fmt: skip
def test_each_item_comes_exactly_once_a_pass(counts, batch, num_ranks, num_shards, seed, window, full_shuffle):
    counts = filled_up(counts, batch)
    source = Counted(counts, cut(len(counts), num_shards, seed % 2**31))
    order = Order({"a": source.shard_items}, {"a": 1.0}, batch, seed, window, full_shuffle)
    find_item = source.find_item
    steps_a_pass = count_items(source) // batch
    for number in range(3):
        places = [
            order.locate(position)
            for step in range(number * steps_a_pass, (number + 1) * steps_a_pass)
            for rank in range(num_ranks)
            for position in order.positions(step, rank, num_ranks)
        ]
        found = [find_item(place.item) for place in places]
        assert {place.number for place in places} == {number}
        assert sorted((place.record, place.index) for place in found) == all_items(counts)
        assert all(place.num_items == counts[place.record] for place in found)


@settings(max_examples=8, deadline=None)
@given(st.lists(UNEVEN, min_size=2, max_size=4), st.integers(0, 2**30), st.sampled_from([0, 2**16]))
def test_in_a_mix_no_item_comes_twice_in_a_pass_and_shares_are_exact(counts, seed, full_shuffle):
    sources = {f"s{i}": Counted(of_source) for i, of_source in enumerate(counts)}
    weights = {name: 1.0 + i for i, name in enumerate(sources)}
    order = Order({n: s.shard_items for n, s in sources.items()}, weights, 8, seed, 2, full_shuffle)
    places = [order.locate(position) for position in range(1024 * order.lanes)]
    assert max(Counter(places).values()) == 1
    assert Counter(place.source for place in places) == {i: s * order.lanes for i, s in enumerate(order.shares)}
    for number, of_source in enumerate(counts):
        first_pass = {place.item for place in places if place.source == number and place.number == 0}
        if order.shares[number] * order.lanes >= sum(of_source) + order.lanes:
            assert first_pass == set(range(sum(of_source)))


@settings(max_examples=40, deadline=None)
@given(UNEVEN, st.integers(1, 20), st.integers(0, 2**31 - 1))
def test_items_of_a_shard_are_those_of_its_records(counts, num_shards, seed):
    sizes = cut(len(counts), num_shards, seed)
    source = Counted(counts, sizes)
    assert np.repeat(np.arange(num_shards), source.shard_items).tolist() == [
        shard for shard, records in enumerate(np.split(counts, np.cumsum(sizes)[:-1])) for _ in range(sum(records))
    ]
    find_item = source.find_item
    assert [tuple(find_item(i))[:2] for i in range(count_items(source))] == all_items(counts)


def test_reads_stay_near_each_other():
    """Inside a window that is two shards long, a lane reads from these shards alone."""
    counts = np.random.default_rng(0).integers(1, 12, 100 * 50)
    source = Counted(counts, [50] * 100)
    order = Order({"a": source.shard_items}, {"a": 1.0}, 8, seed=3, window=2, full_shuffle=0)
    (of_source,) = order.sources
    find_item = source.find_item
    opened = 0
    num_windows = 0
    for lane in range(order.lanes):
        rows = count_items(source) // order.lanes
        for first in range(0, rows, of_source.window_rows):
            last = min(first + of_source.window_rows, rows)
            shards = {find_item(of_source.locate(lane, row)[0]).record // 50 for row in range(first, last)}
            # As long as two shards on average, it lies in three of them, or in four where they are short.
            assert len(shards) <= 4
            opened += len(shards)
            num_windows += 1
    assert opened <= 100 + num_windows, "each shard once, but for those at the seams of windows"


def test_records_without_an_item_are_passed_over():
    find_item = Counted([0, 2, 0, 0, 1, 0]).find_item
    assert [tuple(find_item(i)) for i in range(3)] == [(1, 0, 2), (1, 1, 2), (4, 0, 1)]
