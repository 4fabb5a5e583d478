"""The trials of a search: Optuna is asked for values, and told what came of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from visllama.config.objective import PRUNED, Objective
from visllama.config.ranges import Range
from visllama.console import printable
from visllama.errors import ConfigError
from visllama.tracking.study import NAME, cut_broken_line, find_trial, open_journal, trial_id

_ROW = "row"
"""The attribute of a trial that ended: its job's row in the table of the sweep."""
_STARTS = "starts"
"""The attribute of a trial that is run again: how often its values were started."""
MAX_STARTS = 3
"""Values whose job took the search down so often are not tried again: the search would never end."""
_MIN_COMPLETE = 10
"""Fewer trials say nothing of which key mattered."""


class Asked(NamedTuple):
    """A trial that is to run.

    Attributes:
        number: The number of the trial, and of its job.
        words: The overrides that give the searched keys their values.
    """

    number: int
    words: list[str]


class Trials:
    """The trials of one search, in the journal of its folder.

    Each trial is drawn with a seed of its own, so a search that was killed and goes on draws what it would have drawn.

    Args:
        journal: The file with the trials, made where there is none.
        ranges: What is searched.
        objective: What is searched for.
        sampler: "tpe" or "random".
        num_startup: How many trials TPE draws at random.
        seed: The seed of the search.
    """

    def __init__(
        self, journal: Path, ranges: Sequence[Range], objective: Objective, sampler: str, num_startup: int, seed: int
    ) -> None:
        cut_broken_line(journal)
        self.journal = journal
        self.ranges = {each.key: each for each in ranges}
        self.distributions = {each.key: distribution(each) for each in ranges}
        self.objective = objective
        self.sampler = sampler
        self.num_startup = num_startup
        self.seed = seed
        self.storage = open_journal(journal)
        direction = "maximize" if objective.is_higher_better else "minimize"
        self.study = optuna.create_study(
            storage=self.storage, study_name=NAME, direction=direction, load_if_exists=True
        )
        for trial in self._of_states(TrialState.RUNNING):
            if _ROW in trial.user_attrs:  # it was killed between the two halves of `tell`
                self._finish(trial.number, trial.user_attrs[_ROW])

    def rows(self) -> list[tuple[Asked, dict[str, Any]]]:
        """Return the trials that have ended, in their order, each with the row of its job."""
        ended = [trial for trial in self._of_states() if _ROW in trial.user_attrs]
        return [(self._asked(trial), dict(trial.user_attrs[_ROW])) for trial in ended]

    def stopped(self) -> list[Asked]:
        """Return the trials that were running when the search was killed."""
        return [self._asked(trial) for trial in self._of_states(TrialState.RUNNING)]

    def num_starts(self, number: int) -> int:
        """Return how often the values of a trial have been started, this trial included."""
        return find_trial(self.storage, number).user_attrs.get(_STARTS, 1)

    def run_again(self, number: int) -> None:
        """Mark a trial that was killed as failed, and let another with the same values be asked for next."""
        trial = find_trial(self.storage, number)
        self.study.tell(number, state=TrialState.FAIL)
        self.study.enqueue_trial(trial.params, user_attrs={_STARTS: self.num_starts(number) + 1})

    def ask(self, count: int) -> list[Asked]:
        """Return trials that are to run, with consecutive numbers: first those that are to run again."""
        num_ended = len(self.rows())
        asked = []
        with _quiet():
            for place in range(count):
                self.study.sampler = self._make_sampler(num_ended + place)
                trial = self.study.ask(self.distributions)
                asked.append(self._asked(find_trial(self.storage, trial.number)))
        return asked

    def tell(self, number: int, row: Mapping[str, Any]) -> None:
        """Keep what came of a trial: its job's row in the table."""
        self.storage.set_trial_user_attr(trial_id(self.storage, number), _ROW, dict(row))
        self._finish(number, row)

    def _finish(self, number: int, row: Mapping[str, Any]) -> None:
        value = row.get("scores", {}).get(self.objective.name)
        if PRUNED in row:
            self.study.tell(number, state=TrialState.PRUNED)
        elif value is None:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, value)

    def importances(self) -> dict[str, float]:
        """Return the share of each key in what sets good trials apart (PED-ANOVA); nothing of few trials or one key."""
        complete = self._of_states(TrialState.COMPLETE)
        if len(complete) < _MIN_COMPLETE or len(self.ranges) < 2:
            return {}
        with _quiet():
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()  # others want scikit-learn
            return optuna.importance.get_param_importances(self.study, evaluator=evaluator)

    def _of_states(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in some states, or in any."""
        return self.study.get_trials(states=states or None)

    def _asked(self, trial: FrozenTrial) -> Asked:
        """Return a trial with its overrides.

        Raises:
            ConfigError: If the journal, which may be somebody else's, names a choice that the search does not have.
        """
        for key, each in self.ranges.items():
            value = trial.params[key]
            if each.choices and value not in each.choices:
                raise ConfigError(
                    f"{self.journal}: trial {trial.number} has {key}={printable(value)}, which is no choice of this "
                    f"search: begin another one"
                )
        words = [each.word(trial.params[key]) for key, each in self.ranges.items()]
        return Asked(trial.number, words)

    def _make_sampler(self, place: int) -> BaseSampler:
        """Return what draws the trial of a place in the search, counted from 0."""
        seed = int(np.random.SeedSequence([self.seed, place]).generate_state(1)[0])
        if self.sampler == "random":
            return RandomSampler(seed=seed)
        return TPESampler(n_startup_trials=self.num_startup, multivariate=True, constant_liar=True, seed=seed)


def distribution(found: Range) -> BaseDistribution:
    """Return Optuna's distribution of the values that a key may take."""
    if found.choices:
        return CategoricalDistribution(found.choices)
    if found.is_whole:
        return IntDistribution(found.low, found.high, log=found.is_log)
    return FloatDistribution(found.low, found.high, log=found.is_log)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the terminal that parts of Optuna 4 are called experimental; in 5 they are not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
