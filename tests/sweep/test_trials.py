"""What is asked of Optuna, and what it is told: a search that was killed draws what it would have drawn."""

import pytest
from optuna.trial import TrialState

from visllama.config.objective import PRUNED, VAL_LOSS, Objective
from visllama.config.ranges import Range
from visllama.errors import ConfigError
from visllama.sweep.trials import Asked, Trials

RANGES = [Range("optim.lr", 1e-5, 1e-1, is_log=True), Range("n", 1, 8), Range("model/connector", choices=("mlp", "x"))]
LOSS = Objective(VAL_LOSS, is_higher_better=False)


@pytest.fixture
def open_trials(tmp_path):
    def make(ranges=RANGES, objective=LOSS, sampler="tpe", seed=1, name="a"):
        return Trials(tmp_path / f"{name}.journal", ranges, objective, sampler, 3, seed)

    return make


def row(number: int, **more) -> dict:
    return {"job": number, "overrides": [], "folder": f"/runs/{number}", **more}


def scored(asked: Asked, name: str = VAL_LOSS) -> dict:
    """Return the row of a job whose loss is least at the lowest rate."""
    rate = float(asked.words[0].partition("=")[2])
    return row(asked.number, scores={name: rate})


def search(trials: Trials, count: int) -> list[list[str]]:
    drawn = []
    for _ in range(count):
        (asked,) = trials.ask(1)
        drawn.append(asked.words)
        trials.tell(asked.number, scored(asked))
    return drawn


def test_each_key_gets_a_value_of_its_range(open_trials):
    for rate, whole, connector in search(open_trials(), 8):
        assert 1e-5 <= float(rate.removeprefix("optim.lr=")) <= 1e-1
        assert 1 <= int(whole.removeprefix("n=")) <= 8
        assert connector in ("model/connector=mlp", "model/connector=x")


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_seed_decides_what_is_drawn(open_trials, sampler):
    first = search(open_trials(sampler=sampler, name="first"), 6)
    assert search(open_trials(sampler=sampler, name="again"), 6) == first
    assert search(open_trials(sampler=sampler, name="other", seed=2), 6) != first


def test_tpe_learns_and_random_does_not(open_trials):
    """The least rate is the best: TPE's last ten draws lie lower than chance, whose middle is 1e-3."""
    rates = {}
    for sampler in ("tpe", "random"):
        drawn = search(open_trials([RANGES[0]], sampler=sampler, name=sampler), 25)[-10:]
        rates[sampler] = sorted(float(words[0].partition("=")[2]) for words in drawn)[5]
    assert rates["tpe"] < 1e-4 < rates["random"]


@pytest.mark.parametrize("killed_at", [0, 2, 4])
def test_a_search_that_was_killed_draws_what_it_would_have_drawn(open_trials, killed_at):
    expected = search(open_trials(name="whole"), 6)

    before = open_trials(name="killed")
    drawn = search(before, killed_at)
    (running,) = before.ask(1)

    after = open_trials(name="killed")
    assert after.stopped() == [running] and len(after.rows()) == killed_at
    after.run_again(running.number)
    (again,) = after.ask(1)
    assert again.words == running.words and again.number != running.number
    after.tell(again.number, scored(again))
    assert [*drawn, again.words, *search(after, 5 - killed_at)] == expected
    assert after.stopped() == [] and len(after.rows()) == 6


def test_starts_of_the_same_values_are_counted(open_trials):
    for starts in (1, 2, 3):
        trials = open_trials()
        (asked,) = trials.ask(1)
        assert trials.num_starts(asked.number) == starts
        trials.run_again(asked.number)


def test_a_batch_has_consecutive_numbers_also_with_trials_that_run_again(open_trials):
    first = open_trials()
    asked = first.ask(3)
    assert [each.number for each in asked] == [0, 1, 2]
    first.tell(1, scored(asked[1]))
    later = open_trials()
    for each in later.stopped():
        later.run_again(each.number)
    again = later.ask(3)
    assert [each.number for each in again] == [3, 4, 5]
    assert [each.words for each in again[:2]] == [asked[0].words, asked[2].words]


def test_what_came_of_a_trial_is_kept_in_the_journal(open_trials):
    trials = open_trials()
    rows = [row(0, scores={VAL_LOSS: 0.5}), row(1, error="diverged"), row(2, scores={VAL_LOSS: None}),
            row(3, scores={VAL_LOSS: 0.1, "other": 3.0}, **{PRUNED: 40})]  # fmt: skip
    for asked, found in zip(trials.ask(4), rows, strict=True):
        trials.tell(asked.number, found)
    again = open_trials()
    assert [found for _, found in again.rows()] == rows and again.stopped() == []
    states = [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL, TrialState.PRUNED]
    assert [trial.state for trial in again.study.get_trials()] == states
    assert again.study.best_value == 0.5


def test_a_kill_between_the_two_halves_of_telling_loses_nothing(open_trials, monkeypatch):
    trials = open_trials()
    (asked,) = trials.ask(1)
    monkeypatch.setattr(trials, "_finish", lambda *_: None)
    trials.tell(asked.number, scored(asked))
    again = open_trials()
    assert again.stopped() == [] and len(again.rows()) == 1
    assert again.study.get_trials()[0].state == TrialState.COMPLETE


def test_a_score_is_maximized_and_a_loss_minimized(open_trials):
    score = Objective("scenes_caption/CIDEr")
    for objective, best in ((LOSS, 0.1), (score, 0.9)):
        trials = open_trials(objective=objective, name=objective.metric)
        for asked, value in zip(trials.ask(2), (0.1, 0.9), strict=True):
            trials.tell(asked.number, row(asked.number, scores={objective.name: value}))
        assert trials.study.best_value == best


def test_what_mattered_is_told_of_ten_trials_and_two_keys(open_trials):
    trials = open_trials()
    search(trials, 9)
    assert trials.importances() == {}
    search(trials, 6)
    shares = trials.importances()
    assert set(shares) == {"optim.lr", "n", "model/connector"} and max(shares, key=shares.get) == "optim.lr"
    assert sum(shares.values()) == pytest.approx(1)
    single = open_trials([RANGES[0]], name="single")
    search(single, 12)
    assert single.importances() == {}


def test_the_journal_of_somebody_else_brings_no_words(open_trials, tmp_path):
    """A choice becomes an override of a job: it would choose what runs."""
    choices = [Range("x", choices=("a", "evil"))]
    drawn = {tuple(asked.words) for asked in open_trials(choices, name="theirs").ask(12)}
    assert drawn == {("x=a",), ("x=evil",)}
    with pytest.raises(ConfigError, match="has x=evil, which is no choice of this search"):
        open_trials([Range("x", choices=("a", "b"))], name="theirs").stopped()
