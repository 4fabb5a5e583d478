from __future__ import annotations

import pytest

from visllama.machine.cards import CARDS, find_card


@pytest.mark.parametrize(("card", "of_bytes"), [
    ("a100_80g", {2: 312e12, 4: 19.5e12, 8: 19.5e12}),
    ("h100_80g", {2: 989e12, 4: 67e12, 8: 67e12}),
    ("rtx4090_24g", {2: 165e12, 4: 82.6e12, 8: 1.3e12}),
])  # fmt: skip
def test_operations_a_second_are_those_of_the_data_sheet(card, of_bytes):
    assert {num_bytes: CARDS[card].flops(num_bytes) for num_bytes in (2, 4, 8)} == pytest.approx(of_bytes)


@pytest.mark.parametrize("name", CARDS)
def test_cuda_has_less_memory_than_a_card_is_sold_by(name):
    """By a tenth at most; where a card's memory corrects its own errors, some of it is spent on that."""
    sold_gb = int(name.rpartition("_")[2].removesuffix("g"))
    assert 0.9 * sold_gb < CARDS[name].memory_gib < sold_gb


@pytest.mark.parametrize(
    ("device_name", "card"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100_80g"),
        ("NVIDIA H200", "h200_141g"),
        ("NVIDIA H100 PCIe", None),  # slower than what its data sheet says of the other H100
        ("AMD Instinct MI300X", None),
    ],
)
def test_a_card_is_known_by_the_name_that_cuda_gives(device_name, card):
    assert find_card(device_name) == (card and CARDS[card])
