"""The trials of a search, in a journal of Optuna's that the search and its jobs share, also across machines."""

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
"""Name of the study, the only one that a journal holds."""
_NUM_UNPRUNED = 5
"""Number of trials that are never ended early: a median of fewer says little."""
_UNPRUNED_PART = 2
"""No trial ends before its number of steps divided by this: slow warm-ups and lower rates are behind until then."""


def open_journal(path: Path) -> JournalStorage:
    """Open the journal of a search; a file that is not there is created."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(JournalFileBackend(str(path)))


def cut_broken_line(path: Path) -> None:
    """Remove the last line of a journal where it was not written to its end; Optuna would append to it.

    Nobody else may write to the journal meanwhile.
    """
    if not path.is_file():
        return

    content = path.read_bytes()
    num_whole_bytes = content.rfind(b"\n") + 1
    if num_whole_bytes != len(content):
        with path.open("r+b") as file:
            file.truncate(num_whole_bytes)


def find_trial(storage: BaseStorage, number: int) -> FrozenTrial:
    """Return the trial of a number, as the journal has it now."""
    return storage.get_trial(trial_id(storage, number))


def trial_id(storage: BaseStorage, number: int) -> int:
    """Return the id by which a storage knows the trial of a number."""
    study_id = storage.get_study_id_from_name(NAME)
    return storage.get_trial_id_from_study_id_trial_number(study_id, number)


def report(journal: Path, number: int, loss: float, step: int, num_steps: int) -> bool:
    """Report a validation loss of a trial, and return whether the trial should end now.

    It should where its best loss so far is worse than the median of the other trials at that step, or where the loss
    is not finite. At the run's last step it is never ended, as there is nothing left to save.

    Args:
        journal: The file with the trials.
        number: The trial's number.
        loss: The loss, of which less is better whatever the search's objective is.
        step: The optimizer steps that were taken.
        num_steps: The steps of the whole run.
    """
    storage = open_journal(journal)
    study = optuna.load_study(study_name=NAME, storage=storage)

    # The search was killed, and has given this trial up: the journal takes no more values of it.
    if find_trial(storage, number).state.is_finished():
        return False

    # A pruner takes the direction of the objective, which may be a score, for that of the losses too.
    is_minimized = study.direction == StudyDirection.MINIMIZE
    value = loss if is_minimized else -loss
    storage.set_trial_intermediate_value(trial_id(storage, number), step, value)

    if step >= num_steps:
        return False
    if not math.isfinite(loss):
        return True
    pruner = MedianPruner(n_startup_trials=_NUM_UNPRUNED, n_warmup_steps=num_steps // _UNPRUNED_PART)
    return pruner.prune(study, find_trial(storage, number))
