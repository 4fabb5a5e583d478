"""Read and write the trials of a hyperparameter search in Optuna's journal.

A journal is one file to which lines are appended. The search and its jobs share it, also across machines.
"""

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
    """Return Optuna's storage over the journal file of a search; a missing file is created, its folder is not.

    Optuna's messages below warnings are turned off for the whole process.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(JournalFileBackend(str(path)))


def cut_broken_line(path: Path) -> None:
    """Remove an incomplete last line of a journal file (text without a line end), if there is one.

    A killed writer can leave such a line, to which Optuna would append the next one. Nothing is done if the file is
    missing. No other process may write to the journal meanwhile.
    """
    if not path.is_file():
        return

    content = path.read_bytes()
    num_whole_bytes = content.rfind(b"\n") + 1
    if num_whole_bytes != len(content):
        with path.open("r+b") as file:
            file.truncate(num_whole_bytes)


def find_trial(storage: BaseStorage, number: int) -> FrozenTrial:
    """Return a trial of the search by its number, which counts from 0, in its present state.

    Raises:
        KeyError: If the storage holds no study `search`, or the study has no such trial.
    """
    return storage.get_trial(trial_id(storage, number))


def trial_id(storage: BaseStorage, number: int) -> int:
    """Return the id that the methods of a storage take for a trial, which is known by its number from 0 on.

    Raises:
        KeyError: If the storage holds no study `search`, or the study has no such trial.
    """
    study_id = storage.get_study_id_from_name(NAME)
    return storage.get_trial_id_from_study_id_trial_number(study_id, number)


def report(journal: Path, number: int, loss: float, step: int, num_steps: int) -> bool:
    """Write a validation loss of a trial to the journal, and return True if the trial should end now.

    The trial should end if the loss is not finite, or if the trial's best loss so far is worse than the median of the
    completed trials at that step. The median counts only from half of the steps on, and once five trials are complete.
    At the last step the result is False. If the search has already ended the trial, nothing is written, and the result
    is False.

    Args:
        journal: The journal file of the search.
        number: The trial's number, from 0 on.
        loss: The loss; less is better, whatever the search's objective is.
        step: The number of optimizer steps that were taken.
        num_steps: The number of optimizer steps of the whole run.

    Raises:
        KeyError: If the journal holds no study `search`, or the study has no such trial.
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

    # At the end there is nothing left to save.
    if step >= num_steps:
        return False
    if not math.isfinite(loss):
        return True

    pruner = MedianPruner(n_startup_trials=_NUM_UNPRUNED, n_warmup_steps=num_steps // _UNPRUNED_PART)
    return pruner.prune(study, find_trial(storage, number))
