"""Every run ends with one validation, and one that was stopped before it knows."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Callback

from tests.support.optimizer_config import OPTIM
from tests.support.scenes_data import data_of
from visllama.training.callbacks.last_validation import LastValidation
from visllama.training.module import VisLlamaModule


class Steps(Callback):
    """Note at which steps there was a validation."""

    def __init__(self) -> None:
        self.validated = []

    def on_validation_end(self, trainer: pl.Trainer, *_) -> None:
        self.validated.append(trainer.global_step)


@pytest.mark.parametrize(
    ("num_steps", "interval", "steps"), [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (1, 1, [1]), (3, None, [])]
)
def test_a_run_ends_with_one_validation(make_model, num_steps, interval, steps):
    model, noted, last = make_model(), Steps(), LastValidation()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, max_steps=num_steps, val_check_interval=interval, limit_val_batches=1.0 if interval else 0,
        num_sanity_val_steps=0, logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        callbacks=[last, noted], precision="64-true",
    )  # fmt: skip
    trainer.fit(VisLlamaModule(model, OPTIM, num_steps), data_of(model, num_steps=num_steps))
    assert noted.validated == steps and trainer.global_step == num_steps
    assert not last.is_missing(trainer)


def test_a_run_that_was_stopped_before_its_last_validation_knows_it():
    last = LastValidation()
    last.load_state_dict({"validated_step": 44})
    trainer = SimpleNamespace(global_step=53, limit_val_batches=1.0)
    assert last.is_missing(trainer)
    trainer.limit_val_batches = 0
    assert not last.is_missing(trainer), "it has none"
