"""What takes memory: lines that add up at each moment."""

from __future__ import annotations

import pytest

from visllama.plan.lines import GIB, LOSS, MOMENTS, UPDATE, Line, Memory

LINES = [
    Line("weights", 4 * GIB, "4 B x 1.07e9"),
    Line("logits", GIB, "2 B x 5.37e8", (LOSS,)),
    Line("copies in an update", 2 * GIB, "4 B x 5.37e8", (UPDATE,)),
]


def test_lines_add_up_at_the_moments_at_which_they_are_held():
    held = Memory(LINES, num_ranks=1)
    assert [held.at(moment) // GIB for moment in MOMENTS] == [4, 5, 4, 4, 4, 6]
    assert held.moment == UPDATE
    assert held.counted == 6 * GIB


@pytest.mark.parametrize(("num_ranks", "fixed_gib"), [(1, 0.75), (2, 1.75)])
def test_the_card_has_to_have_more_than_is_counted(num_ranks, fixed_gib):
    held = Memory(LINES, num_ranks)
    assert held.allowance == round((fixed_gib + 0.05 * 6) * GIB)
    assert held.peak == 6 * GIB + held.allowance
