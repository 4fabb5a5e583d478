"""The trials of a search: Optuna is asked for values, and told the results.

A trial is one choice of values for the searched keys; the job of the same number runs it. Optuna keeps all trials in a
file, the journal, so that a search that was stopped can go on.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping, Sequence
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
"""The attribute of a trial that has ended: its job's row in the table of the sweep."""
_STARTS = "starts"
"""The attribute of a trial that is run again: the number of times that its values were started."""
MAX_STARTS = 3
"""Values whose job took the search down so often are not tried again: the search would never end."""
_MIN_COMPLETE = 10
"""With fewer trials nothing can be said about which key mattered."""


class Asked(NamedTuple):
    """A trial with the values that Optuna has chosen for it.

    Attributes:
        number: The number of the trial, and of its job, counted from 0.
        words: The overrides that give the searched keys these values, in the form "key=value".
    """

    number: int
    words: list[str]


class Trials:
    """The trials of one search, read from and written to its journal, a file.

    A trial is one choice of values for the searched keys, and one job runs it. Only one process may use a journal at a
    time, which is not checked here. Each trial is drawn with a seed of its own: a search that was killed and is started
    again draws the values that it would have drawn without the kill.

    Args:
        journal: The file that holds the trials. It is made if there is none. If there is one, its trials are kept, and
            an incomplete last line is removed from it.
        ranges: The keys that are searched, each with the values that it may take.
        objective: The score by which trials are compared.
        sampler: "random" draws values at random, and "tpe" (or any other text) by Optuna's TPE, which learns from the
            trials before.
        num_startup: The number of trials at the start of the search that TPE draws at random; "random" ignores it.
        seed: The seed of the search.
    """

    def __init__(
        self,
        journal: Path,
        ranges: Sequence[Range],
        objective: Objective,
        sampler: str,
        num_startup: int,
        seed: int,
    ) -> None:
        # A line that was half-written when the search was killed would stop Optuna.
        cut_broken_line(journal)
        self.journal = journal
        self.ranges = {key_range.key: key_range for key_range in ranges}
        self.distributions = {key_range.key: distribution(key_range) for key_range in ranges}
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
            # The search was killed between the two halves of `tell`.
            if _ROW in trial.user_attrs:
                self._finish(trial.number, trial.user_attrs[_ROW])

    def rows(self) -> list[tuple[Asked, dict[str, Any]]]:
        """Return the trials that `tell` was called for, by ascending number, each with a copy of its row.

        Raises:
            ConfigError: If the journal has a value for a trial that is no choice of this search.
        """
        rows = []
        for trial in self._of_states():
            if _ROW in trial.user_attrs:
                asked = self._asked(trial)
                row = dict(trial.user_attrs[_ROW])
                rows.append((asked, row))
        return rows

    def stopped(self) -> list[Asked]:
        """Return the trials that `ask` has begun and neither `tell` nor `run_again` has ended, by ascending number.

        Right after `Trials` is made, these are the trials that were running when the search was killed.

        Raises:
            ConfigError: If the journal has a value for a trial that is no choice of this search.
        """
        running = self._of_states(TrialState.RUNNING)
        return [self._asked(trial) for trial in running]

    def num_starts(self, number: int) -> int:
        """Return how many trials in a row have had the values of this trial, this trial included.

        It is 1 unless `run_again` has let the trial repeat one that was killed.

        Args:
            number: The number of the trial.

        Raises:
            KeyError: If there is no trial of this number.
        """
        trial = find_trial(self.storage, number)
        return trial.user_attrs.get(_STARTS, 1)

    def run_again(self, number: int) -> None:
        """Mark a trial as failed in the journal, and let a later `ask` return a new trial with the same values.

        Args:
            number: The number of a trial that `stopped` has returned.

        Raises:
            KeyError: If there is no trial of this number.
            ValueError: If the trial has ended.
        """
        trial = find_trial(self.storage, number)
        self.study.tell(number, state=TrialState.FAIL)
        num_starts = self.num_starts(number) + 1
        self.study.enqueue_trial(trial.params, user_attrs={_STARTS: num_starts})

    def ask(self, count: int) -> list[Asked]:
        """Let Optuna choose values for new trials, write these trials to the journal, and return them.

        The first trials get the values of those trials that `run_again` was called for, if there are any.

        Args:
            count: The number of trials to return; for 0 the list is empty.

        Returns:
            The new trials, with consecutive numbers. The caller calls `tell` for each of them when its job has ended.
        """
        num_ended = len(self.rows())
        new_trials = []
        with _quiet():
            for place in range(count):
                # The place in the search, and not the trial's number, which differs after a trial that was run again.
                self.study.sampler = self._make_sampler(num_ended + place)
                trial = self.study.ask(self.distributions)
                frozen = find_trial(self.storage, trial.number)
                new_trials.append(self._asked(frozen))
        return new_trials

    def tell(self, number: int, row: Mapping[str, Any]) -> None:
        """Write the result of a trial to the journal, and end the trial.

        Args:
            number: The number of a trial that `ask` has returned.
            row: The row of the trial's job, as `SweepTable` holds it. A row with `pruned_step` marks the trial as ended
                early. A row without a score of the objective, such as one with an `error`, marks it as failed.

        Raises:
            KeyError: If there is no trial of this number.
            RuntimeError: If the trial has ended before.
        """
        # First the row: a search that is killed between these two lines ends the trial by it when it goes on.
        id_in_storage = trial_id(self.storage, number)
        self.storage.set_trial_user_attr(id_in_storage, _ROW, dict(row))
        self._finish(number, row)

    def _finish(self, number: int, row: Mapping[str, Any]) -> None:
        """Mark a trial in Optuna as pruned, failed or complete, as the row of its job says."""
        scores = row.get("scores", {})
        value = scores.get(self.objective.name)
        if PRUNED in row:
            self.study.tell(number, state=TrialState.PRUNED)
        elif value is None:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, value)

    def importances(self) -> dict[str, float]:
        """Return, for each searched key, its share in what sets good trials apart from others (Optuna's PED-ANOVA).

        The shares add up to 1. The dictionary is empty with fewer than 10 complete trials, or fewer than two searched
        keys.
        """
        complete = self._of_states(TrialState.COMPLETE)
        if len(complete) < _MIN_COMPLETE or len(self.ranges) < 2:
            return {}
        with _quiet():
            # Optuna's other evaluators need scikit-learn.
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return optuna.importance.get_param_importances(self.study, evaluator=evaluator)

    def _of_states(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials that are in one of these states, or all trials if none is given."""
        return self.study.get_trials(states=states or None)

    def _asked(self, trial: FrozenTrial) -> Asked:
        """Return a trial with its overrides.

        Raises:
            ConfigError: If the journal, which may be somebody else's, names a choice that the search does not have.
        """
        # A choice becomes an override of the job as it stands: only those of this search are taken.
        words = []
        for key, key_range in self.ranges.items():
            value = trial.params[key]
            if key_range.choices and value not in key_range.choices:
                raise ConfigError(
                    f"{self.journal}: trial {trial.number} has {key}={printable(value)}, which is no choice of this "
                    f"search: begin another one"
                )
            words.append(key_range.word(value))
        return Asked(trial.number, words)

    def _make_sampler(self, place: int) -> BaseSampler:
        """Return the sampler that draws the trial of a place in the search, counted from 0."""
        sequence = np.random.SeedSequence([self.seed, place])
        seed = int(sequence.generate_state(1)[0])
        if self.sampler == "random":
            return RandomSampler(seed=seed)
        return TPESampler(n_startup_trials=self.num_startup, multivariate=True, constant_liar=True, seed=seed)


def distribution(key_range: Range) -> BaseDistribution:
    """Return the distribution from which Optuna draws the values of a key.

    Args:
        key_range: The values that the key may take: choices, whole numbers (both ends are `int`), or other numbers.
    """
    if key_range.choices:
        return CategoricalDistribution(key_range.choices)

    low = key_range.low
    high = key_range.high
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=key_range.is_log)
    # A range without choices has both ends.
    assert low is not None and high is not None
    return FloatDistribution(low, high, log=key_range.is_log)


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Silence Optuna 4's warnings that parts of it are experimental; in Optuna 5 they are not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
