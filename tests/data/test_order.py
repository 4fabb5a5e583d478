"""The order, as a property: over random sources, batches, ranks and mixes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.made_shards import cut
from visllama.data.order import (
    ORDER_VERSION,
    PATTERN_ROWS,
    Order,
    SourceOrder,
    item_shown,
    key,
    mix64,
    num_lanes,
    permutation,
    rank_share,
    shares,
)
from visllama.errors import ConfigError

BATCHES = (1, 8, 64)
COUNTS = (1, 5, 32, 63, 65, 700)


def located(order: Order, num_samples: int) -> list[tuple]:
    return [tuple(order.locate(t)) for t in range(num_samples)]


def batches(order: Order, num_steps: int, num_ranks: int) -> list[list]:
    """Return the global batches that ranks make together."""
    return [
        [order.locate(t) for rank in range(num_ranks) for t in order.positions(step, rank, num_ranks)]
        for step in range(num_steps)
    ]


def test_the_order_never_changes():
    """Golden values: another order needs another ORDER_VERSION, since resumed runs and published figures rest on it.

    Versions 2 and 3 draw the same numbers: they named records then, and name items now.
    """
    assert ORDER_VERSION == 3
    assert [int(mix64(x)) for x in (0, 1, 2**64 - 1)] == [
        16294208416658607535,
        10451216379200822465,
        16490336266968443936,
    ]
    assert int(key(1, 2, 3)) == 15020427595393229491
    assert permutation(8, 1, 0, 1).tolist() == [3, 6, 7, 5, 1, 0, 4, 2]
    small = Order({"a": [5]}, {"a": 1}, 8, seed=1)
    assert [small.locate(t)[1:] for t in range(7)] == [(3, 0), (1, 0), (0, 0), (4, 0), (2, 0), (0, 1), (4, 1)]
    assert (item_shown(1, 3, 0, 5), item_shown(1, 3, 1, 5)) == (4, 2)
    sizes = {"a": [70, 3, 41, 0, 90, 12], "b": [31, 200], "c": [9]}
    mixed = Order(sizes, {"a": 0.6, "b": 0.3, "c": 0.1}, 64, seed=7, window=2, full_shuffle=0)
    told = json.dumps([located(mixed, 4000), [mixed.positions(g, r, 3) for g in range(3) for r in range(3)]])
    assert (
        hashlib.sha256(told.encode()).hexdigest() == "9da304df96aabfcc98f5ca7d6596ef3b2fab15199aad2a50278755c266e5fbc3"
    )


def test_splitmix_reference():
    """The first output of splitmix64 seeded with 0 is a published value."""
    assert int(mix64(0)) == 0xE220A8397B1DCDAF


def test_mix64_is_one_to_one_on_a_sample():
    assert len(np.unique(mix64(np.arange(100_000, dtype=np.uint64)))) == 100_000


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(COUNTS) | st.integers(1, 1000), st.integers(1, 97), st.sampled_from(BATCHES), st.integers(0, 2**40),
    st.integers(1, 9), st.sampled_from([0, 2**16]),
)  # fmt: skip
def test_every_item_comes_exactly_once_a_pass(num_items, num_shards, batch, seed, window, full_shuffle):
    order = Order({"a": cut(num_items, num_shards, seed % 2**31)}, {"a": 1}, batch, seed, window, full_shuffle)
    lanes = order.lanes
    seen = Counter()
    # Lanes differ in length by one at most, so after `rows` rows each has been through three passes.
    rows = 3 * (num_items // lanes + 1)
    for t in range(rows * lanes):
        _, item, number = order.locate(t)
        if number < 3:
            seen[number, item] += 1
    assert seen == {(number, item): 1 for number in range(3) for item in range(num_items)}


@pytest.mark.parametrize("num_records", COUNTS)
@pytest.mark.parametrize("batch", BATCHES)
def test_small_sources_end_a_pass_before_the_next_begins(num_records, batch):
    """Of up to 65,536 items: a pass is a contiguous stretch of positions, shuffled as a whole."""
    order = Order({"a": [num_records]}, {"a": 1}, batch, seed=3)
    numbers = [place[2] for place in located(order, 3 * num_records)]
    assert numbers == sorted(numbers) and Counter(numbers) == {0: num_records, 1: num_records, 2: num_records}


RANKS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 48, 96)


@pytest.mark.parametrize("batch", [1, 8, 48, 64, 96])
@pytest.mark.parametrize("full_shuffle", [0, 2**16])
def test_global_batches_are_the_same_for_every_number_of_ranks(batch, full_shuffle):
    sizes = {"a": cut(3000, 40, 1), "b": [31, 200], "c": [9]}
    order = Order(sizes, {"a": 0.6, "b": 0.3, "c": 0.1}, batch, 5, 2, full_shuffle)
    alone = batches(order, 5, 1)
    assert sorted(t for g in range(5) for t in order.positions(g, 0, 1)) == list(range(5 * batch))
    for num_ranks in RANKS:
        assert batches(order, 5, num_ranks) == alone, num_ranks
        counts = {len(order.positions(3, rank, num_ranks)) for rank in range(num_ranks)}
        assert max(counts) - min(counts) <= 1 and (len(counts) == 1 or batch % num_ranks), "equal where they divide"


def test_ranks_keep_to_shards_of_their_own():
    """800 shards, 8 ranks: in a pass the ranks together open each shard once, but for those at the seams of lanes."""
    order = Order({"a": [100] * 800}, {"a": 1}, 64, seed=1, full_shuffle=0)
    opened = [set() for _ in range(8)]
    for step in range(800 * 100 // 64):
        for rank in range(8):
            opened[rank] |= {order.locate(t).item // 100 for t in order.positions(step, rank, 8)}
    assert sum(map(len, opened)) <= 800 + 8


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=7), st.sampled_from(BATCHES), st.integers(0, 2**30))
def test_a_mix_is_exact_in_every_period(weights, batch, seed):
    names = [f"s{i}" for i in range(len(weights))]
    order = Order({n: [100 + i] for i, n in enumerate(names)}, dict(zip(names, weights, strict=True)), batch, seed)
    drawn = Counter(order.locate(t).source for t in range(PATTERN_ROWS * order.lanes))
    assert drawn == {i: share * order.lanes for i, share in enumerate(order.shares)}
    assert sum(order.shares) == PATTERN_ROWS
    assert all(abs(s - w / sum(weights) * PATTERN_ROWS) < 1 for s, w in zip(order.shares, weights, strict=True))


def test_sources_of_a_mix_go_through_their_own_passes():
    order = Order({"a": cut(500, 9, 0), "b": [7]}, {"a": 0.9, "b": 0.1}, 8, seed=1, full_shuffle=0)
    seen = Counter(located(order, 40_000))
    assert {number for source, _, number in seen if source == 1} >= set(range(500)), "b has gone round often"
    assert max(seen.values()) == 1, "and no record came twice in one pass"
    whole = [number for number in range(60) if all(seen[0, record, number] for record in range(500))]
    assert whole == list(range(60))


def test_a_share_too_small_to_be_drawn_is_refused():
    assert shares({"a": 1, "b": 1, "c": 1}) == [342, 341, 341]
    with pytest.raises(ConfigError, match=r"data\.sources\.b\.weight=0\.0001: .* too little"):
        shares({"a": 1, "b": 0.0001})


def test_passes_and_seeds_differ():
    orders = {tuple(SourceOrder([50] * 4, seed, 8, 1, 0).locate(3, 25 * number + k)[0] for k in range(25))
              for seed in (1, 2) for number in range(3)}  # fmt: skip
    assert len(orders) == 6


def test_one_integer_and_an_array_of_them_are_scrambled_alike():
    values = [0, 1, 2**31, 2**63, 2**64 - 1]
    assert mix64(np.array(values, np.uint64)).tolist() == [mix64(value) for value in values]
    for record in range(20):
        shown = [item_shown(7, record, number, 6) for number in range(6)]
        assert shown == permutation(6, 7, record, 2).tolist(), "2: the purpose of what is shown"


@pytest.mark.parametrize("num_items", [1, 2, 5])
def test_as_many_passes_as_items_show_each_once_where_they_are_not_counted(num_items):
    for record in range(7):
        shown = [item_shown(1, record, number, num_items) for number in range(num_items)]
        assert sorted(shown) == list(range(num_items))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 5, 8, 64, 100])
def test_ranks_partition_a_batch(num_ranks):
    parts = [rank_share(64, rank, num_ranks) for rank in range(num_ranks)]
    assert [i for part in parts for i in part] == list(range(64))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("batch", "lanes"), [(1, 1), (8, 8), (64, 64), (96, 48), (127, 1), (128, 64), (1000, 50), (1024, 64)]
)
def test_lanes_divide_the_batch(batch, lanes):
    assert num_lanes(batch) == lanes


def test_a_manifest_of_700_million_items():
    """Positions far apart, in a mix: what is measured of it stands in `visllama benchmark what=data`."""
    sizes = np.random.default_rng(0).integers(8000, 12001, 70_000)
    order = Order({"coyo": sizes, "cc3m": [10_000] * 300}, {"coyo": 0.9, "cc3m": 0.1}, 1024, seed=1)
    for t in (0, 10**6, 10**9, 10**12):
        source, item, _ = order.locate(t)
        assert 0 <= item < order.sources[source].num_items


@pytest.mark.parametrize("n", [0, 1, 2, 3, 1000, 80_000])
def test_a_permutation_is_the_order_of_the_hashes(n):
    hashes = mix64(np.arange(n, dtype=np.uint64) + np.uint64(key(3, n)))
    assert permutation(n, 3, n).tolist() == np.argsort(hashes).tolist()


def test_hashes_that_agree_in_the_bits_compared_are_told_apart():
    """Three million hashes, compared in 42 bits: about one pair agrees, in some of these."""
    assert any(
        len(np.unique(mix64(np.arange(2**21, dtype=np.uint64) + np.uint64(key(seed))) >> np.uint64(21))) < 2**21
        for seed in range(3)
    )
    for seed in range(3):
        hashes = mix64(np.arange(2**21, dtype=np.uint64) + np.uint64(key(seed)))
        assert (permutation(2**21, seed) == np.argsort(hashes)).all()
