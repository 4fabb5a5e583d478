"""The trials of a search, in Optuna's journal: what the search and its jobs, which may be elsewhere, both look into."""

from __future__ import annotations

import math
from pathlib import Path

import optuna
from optuna.pruners import MedianPruner
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

NAME = "search"
"""The study's name; a journal holds one."""
_NUM_UNPRUNED = 5
"""So many trials are never ended early: a median of fewer says little."""
_UNPRUNED_PART = 2
"""One part in so many of each run is never ended: what warms up slowly, or has a lower rate, is behind there."""


def open_journal(path: Path) -> JournalStorage:
    """Open the journal of a search, which is made where there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(JournalFileBackend(str(path)))


def cut_broken_line(path: Path) -> None:
    """Take away the last line of a journal where it was not written to its end; Optuna would append to it.

    Nobody else may write to the journal meanwhile.
    """
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))


def find_trial(storage: BaseStorage, number: int) -> FrozenTrial:
    """Return the trial of a number, as the journal has it now."""
    return storage.get_trial(trial_id(storage, number))


def trial_id(storage: BaseStorage, number: int) -> int:
    """Return the number of a trial that a storage counts by."""
    return storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(NAME), number)


def report(journal: Path, number: int, loss: float, step: int, num_steps: int) -> bool:
    """Report a loss on validation to a trial, and return whether the trial is to end.

    It is when its best loss so far is worse than the median of the other trials at that step, or no number.

    Args:
        journal: The file with the trials.
        number: The trial's number.
        loss: The loss, of which less is better whatever the search's objective is.
        step: The optimizer steps that were taken.
        num_steps: The steps of the whole run.
    """
    storage = open_journal(journal)
    study = optuna.load_study(study_name=NAME, storage=storage)
    if find_trial(storage, number).state.is_finished():
        return False  # the search was killed, and has given this trial up

    # A pruner takes the direction of the objective, which may be a score, for that of the losses too.
    is_minimized = study.direction == StudyDirection.MINIMIZE
    storage.set_trial_intermediate_value(trial_id(storage, number), step, loss if is_minimized else -loss)
    if not math.isfinite(loss):
        return step < num_steps
    pruner = MedianPruner(n_startup_trials=_NUM_UNPRUNED, n_warmup_steps=num_steps // _UNPRUNED_PART)
    return step < num_steps and pruner.prune(study, find_trial(storage, number))
