"""A trial ends when its search says so: after a validation, on all ranks, and without being judged."""

import lightning.pytorch as pl
import optuna
import pytest

from tests.support.optimizer_config import OPTIM
from tests.support.scenes_data import data_of
from visllama.errors import ConfigError
from visllama.parallel.strategy import SingleDevice
from visllama.tracking.study import NAME, find_trial, open_journal
from visllama.training.callbacks.prune import Prune
from visllama.training.module import VisLlamaModule

NUM_STEPS = 6


@pytest.fixture
def journal(tmp_path):
    """A journal of five trials that ended with a loss that nothing reaches, and a sixth that runs."""
    path = tmp_path / "search.journal"
    study = optuna.create_study(storage=open_journal(path), study_name=NAME)
    for _ in range(5):
        trial = study.ask()
        for step in range(1, NUM_STEPS + 1):
            trial.report(0.0, step)
        study.tell(trial, 0.0)
    study.ask()
    return path


def fit(model, prune: Prune, **more) -> pl.Trainer:
    options = {"val_check_interval": 1, **more}
    trainer = pl.Trainer(
        max_epochs=1, max_steps=NUM_STEPS, num_sanity_val_steps=0, logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, callbacks=[prune], precision="64-true",
        strategy=SingleDevice("cpu"), accelerator="cpu", **options,
    )  # fmt: skip
    trainer.fit(VisLlamaModule(model, OPTIM, NUM_STEPS), data_of(model, num_steps=NUM_STEPS))
    return trainer


def test_it_ends_behind_the_first_half(make_model, journal):
    prune = Prune(str(journal), 5)
    trainer = fit(make_model(), prune)
    # The first half is never ended: the pruner is asked from step 3 on.
    assert trainer.global_step == prune.step == 3
    reported = find_trial(open_journal(journal), 5).intermediate_values
    assert list(reported) == [1, 2, 3] and all(loss > 0 for loss in reported.values())


def test_a_trial_that_is_not_behind_trains_to_its_end(make_model, tmp_path):
    path = tmp_path / "search.journal"
    optuna.create_study(storage=open_journal(path), study_name=NAME).ask()
    prune = Prune(str(path), 0)
    assert fit(make_model(), prune).global_step == NUM_STEPS and prune.step is None
    assert list(find_trial(open_journal(path), 0).intermediate_values) == list(range(1, NUM_STEPS + 1))


def test_what_another_rank_was_told_ends_this_one_too(make_model, tmp_path, monkeypatch):
    """The first rank asks alone."""
    monkeypatch.setattr(SingleDevice, "gather", lambda self, values: [[1], values])
    monkeypatch.setattr(Prune, "_ask", lambda *_: False)
    prune = Prune(str(tmp_path / "none"), 0)
    assert fit(make_model(), prune).global_step == prune.step == 1


def test_without_validations_there_is_nothing_to_report(make_model, journal):
    with pytest.raises(ConfigError, match=r"search.prune=true: trainer.val_check_interval=null validates nothing"):
        fit(make_model(), Prune(str(journal), 5), limit_val_batches=0, val_check_interval=None)
