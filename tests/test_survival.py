"""Killed, told to leave, or run for long: short versions of `tests/scripts/survival/`, and its full ones as proofs."""

from __future__ import annotations

import pytest

from tests.scripts.survival.kill import kill
from tests.scripts.survival.report import Report
from tests.scripts.survival.soak import soak
from tests.scripts.survival.term import term


def assert_kept(report: Report) -> None:
    report.show()
    assert not report.broken


@pytest.mark.slow
def test_killed_at_five_moments(tmp_path):
    assert_kept(kill(tmp_path, moments=5))


@pytest.mark.slow
def test_told_to_leave_at_six_moments(tmp_path):
    """Each rank alone, at start-up, in a step, in validation and in a save; two are gone on with."""
    targets, phases = ("parent", "rank 1", "torchrun rank 0"), ("group", "first step", "validate", "save")
    assert_kept(term(tmp_path, moments=6, steps=8, targets=targets, phases=phases, resumes=lambda i: i in (3, 5)))


@pytest.mark.slow
def test_a_hundred_and_twenty_steps_killed_three_times(tmp_path):
    assert_kept(soak(tmp_path, steps=120, kill_every=40, every=1))


@pytest.mark.proof
@pytest.mark.parametrize(("stage", "ranks", "moments"), [("pretrain", 1, 20), ("finetune", 1, 20), ("pretrain", 2, 6)])
def test_killed_at_twenty_moments(tmp_path, stage, ranks, moments):
    assert_kept(kill(tmp_path, stage, moments, ranks=ranks))


@pytest.mark.proof
def test_told_to_leave_at_twenty_moments(tmp_path):
    assert_kept(term(tmp_path))


@pytest.mark.proof
def test_two_thousand_steps_killed_ten_times(tmp_path):
    assert_kept(soak(tmp_path))
