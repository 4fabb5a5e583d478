"""Validate the last step of every run."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback


class LastValidation(Callback):
    """Let every run end with a validation, also if the interval does not divide the number of steps.

    Attributes:
        validated_step: The step of the last validation.
    """

    def __init__(self) -> None:
        self.validated_step = -1

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        if trainer.global_step == trainer.max_steps:
            # Before it stops, Lightning validates once.
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        self.validated_step = trainer.global_step

    def is_missing(self, trainer: pl.Trainer) -> bool:
        """Return whether a run that has trained all its steps was stopped before it could validate the last one."""
        return trainer.limit_val_batches > 0 and self.validated_step < trainer.global_step

    def state_dict(self) -> dict:
        return {"validated_step": self.validated_step}

    def load_state_dict(self, state_dict: dict) -> None:
        self.validated_step = state_dict["validated_step"]
