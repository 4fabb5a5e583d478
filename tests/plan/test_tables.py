"""A plan's tables: what stands in their cells."""

from __future__ import annotations

import pytest

from visllama.machine.cards import CARDS
from visllama.model.flops import Flops
from visllama.plan.job import Job, Precision
from visllama.plan.lines import GIB, LOSS, UPDATE, Line, Memory
from visllama.plan.tables import flops_table, gib, memory_table, rate


def cells(table, column: int) -> list[str]:
    return list(table.columns[column].cells)


def test_what_is_held_at_the_peak_is_marked_and_stands_against_the_card():
    job = Job(1, 2, 8, 8, "ddp", Precision.named("bf16-mixed"), False, (8.0, 4), True)
    weights = Line("weights", 4 * GIB, "4 B x 1.07e9")
    update = Line("copies in an update", 3 * GIB, "4 B x 8.05e8", (UPDATE,))
    longest = Memory([weights, Line("logits", 6 * GIB, "2 B x 3.22e9", (LOSS,)), update], 2)
    mean = Memory([weights, Line("logits", GIB, "2 B x 5.37e8", (LOSS,)), update], 2)
    shown = memory_table(job, longest, mean, "a100_80g", CARDS["a100_80g"])
    assert shown.title == "Memory of each of 2 ranks"
    assert cells(shown, 0) == [
        "* weights",
        "* logits",
        "  copies in an update",
        "* allowance",
        "  peak",
        "  gpu=a100_80g",
    ]
    assert cells(shown, 1) == ["4.00", "6.00", "3.00", "2.25", "12.25", "79.10"]
    assert cells(shown, 2) == ["4.00", "1.00", "3.00", "2.10", "9.10", ""]
    assert cells(shown, 3)[3] == "0.75 of CUDA + 1 of NCCL + 5%"
    assert cells(shown, 3)[4] == f"in {LOSS}"


def test_the_arithmetic_of_the_parts_is_summed_up():
    shown = flops_table([Flops("frozen blocks", 1.2e12, "4 x 2e9"), Flops("head", 3.5e9, "6 x 1e8")])
    assert cells(shown, 0) == ["frozen blocks", "head", "all"]
    assert cells(shown, 1) == ["1,200.0", "3.5", "1,203.5"]


@pytest.mark.parametrize(
    ("samples_per_second", "written"), [(0.01234, "0.0123"), (12.34, "12.3"), (1234.4, "1,234"), (2.5e6, "2.5e+06")]
)
def test_a_rate_is_written_in_three_digits_or_more(samples_per_second, written):
    assert rate(samples_per_second) == written


@pytest.mark.parametrize(("num_bytes", "written"), [(GIB // 2, "0.50"), (99 * GIB, "99.00"), (1500 * GIB, "1,500")])
def test_bytes_are_written_as_gib(num_bytes, written):
    assert gib(num_bytes) == written
