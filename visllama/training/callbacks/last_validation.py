"""Let every run end with a validation of its last step."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback


class LastValidation(Callback):
    """Stop Lightning's training at the last step, so that it validates there whatever the validation interval is.

    Attributes:
        validated_step: The number of optimizer steps before the last validation; -1 before the first one.
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
        """Return true if a run is to validate at all, and has not yet validated the weights of its newest step.

        Args:
            trainer: The run's trainer, after `fit`.
        """
        return trainer.limit_val_batches > 0 and self.validated_step < trainer.global_step

    def state_dict(self) -> dict:
        return {"validated_step": self.validated_step}

    def load_state_dict(self, state_dict: dict) -> None:
        self.validated_step = state_dict["validated_step"]
