"""The validation that every run ends with."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback


class LastValidation(Callback):
    """Let every run end with a validation: the interval between two need not divide the number of steps.

    Attributes:
        validated_step: The step of the last validation.
    """

    def __init__(self) -> None:
        self.validated_step = -1

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # before it stops, Lightning validates, once

    def on_validation_end(self, trainer: pl.Trainer, *_) -> None:
        self.validated_step = trainer.global_step

    def is_missing(self, trainer: pl.Trainer) -> bool:
        """Return whether a run that has trained all its steps was stopped before it could validate the last."""
        return trainer.limit_val_batches > 0 and self.validated_step < trainer.global_step

    def state_dict(self) -> dict:
        return {"validated_step": self.validated_step}

    def load_state_dict(self, state: dict) -> None:
        self.validated_step = state["validated_step"]
