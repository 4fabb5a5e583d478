"""Figures: timed in turns, and shown beside what is asked of them."""

from __future__ import annotations

from visllama.benchmark import figures
from visllama.benchmark.figures import Figure, faster, table, time_in_turns
from visllama.console import say


def test_jobs_take_turns_and_the_first_round_does_not_count():
    ran = []
    jobs = {name: lambda name=name: ran.append(name) or 2 for name in "ab"}
    taken = time_in_turns(jobs, 2, lambda: None)
    assert {name: len(times) for name, times in taken.items()} == {"a": 2, "b": 2}
    assert sorted(ran) == list("aaabbb") and ran[2] != ran[4], "who is first changes"


def test_a_ratio_compares_each_round_in_itself():
    assert faster([1, 10, 100], [2, 20, 500]) == 2


def test_a_figure_that_misses_is_told_and_is_no_error(capsys):
    met, missed = Figure("a", "x", "x", 3.0, "x", least=2), Figure("a", "y", "y", 120.0, "MB", most=100)
    assert met.to_dict() == {"value": 3.0, "unit": "x", "asked": ">= 2", "ok": True}
    assert missed.to_dict() == {"value": 120.0, "unit": "MB", "asked": "< 100", "ok": False}
    assert Figure("a", "z", "z", 1.0, "s").to_dict() == {"value": 1.0, "unit": "s"}
    figures_shown = table("t", [met, missed])
    assert figures_shown.row_count == 3  # with the section's head
    say(figures_shown)
    assert "missed" in capsys.readouterr().out


def test_numbers_are_shown_with_what_they_are_good_for():
    assert [figures._plain(value) for value in (12345.6, 76.14, 2.418, 0.5712)] == ["12,346", "76.1", "2.42", "0.571"]
