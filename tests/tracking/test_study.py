"""What a job tells its trial, and when it is told to end."""

import optuna
import pytest
from optuna.trial import TrialState

from visllama.tracking.study import NAME, cut_broken_line, find_trial, open_journal, report

STEPS = 10


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "search.journal"


def begin(journal, direction: str, others: int) -> int:
    """Make a study of so many trials that have ended, each with a loss of 1 at step 5, and one that runs."""
    study = optuna.create_study(storage=open_journal(journal), study_name=NAME, direction=direction)
    for _ in range(others):
        trial = study.ask()
        report(journal, trial.number, 1.0, 5, STEPS)
        study.tell(trial, 1.0)
    return study.ask().number


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_loss_above_the_median_ends_a_trial_whatever_the_search_is_for(journal, direction):
    number = begin(journal, direction, 5)
    assert not report(journal, number, 9.0, 4, STEPS), "the first half is never ended"
    assert not report(journal, number, 0.5, 5, STEPS)
    other = begin_another(journal)
    assert report(journal, other, 2.0, 5, STEPS)


def begin_another(journal) -> int:
    return optuna.load_study(study_name=NAME, storage=open_journal(journal)).ask().number


def test_the_median_of_four_ends_nothing(journal):
    assert not report(journal, begin(journal, "minimize", 4), 2.0, 5, STEPS)


def test_what_has_trained_all_its_steps_is_not_ended(journal):
    assert not report(journal, begin(journal, "minimize", 5), 2.0, STEPS, STEPS)


def test_a_loss_that_is_no_number_ends_a_trial_at_once(journal):
    assert report(journal, begin(journal, "minimize", 0), float("nan"), 1, STEPS)


def test_a_trial_that_was_given_up_is_told_nothing(journal):
    """The search was killed and goes on, while a job of its first start still runs in a queue."""
    number = begin(journal, "minimize", 5)
    study = optuna.load_study(study_name=NAME, storage=open_journal(journal))
    study.tell(number, state=TrialState.FAIL)
    assert not report(journal, number, 2.0, 5, STEPS)
    assert find_trial(open_journal(journal), number).intermediate_values == {}


@pytest.mark.parametrize("rest", [b'{"op_code": 4, "wor', b"{"])
def test_a_line_that_was_cut_off_is_taken_away(journal, rest):
    """Optuna would append to it, and read nothing of what comes behind."""
    number = begin(journal, "minimize", 1)
    whole = journal.read_bytes()
    journal.write_bytes(whole + rest)
    cut_broken_line(journal)
    assert journal.read_bytes() == whole
    report(journal, number, 3.0, 5, STEPS)
    assert find_trial(open_journal(journal), number).intermediate_values == {5: 3.0}


def test_there_need_be_no_journal(journal):
    cut_broken_line(journal)
    assert not journal.exists()
