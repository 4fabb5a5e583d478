"""A trial of a search that is ended early: its loss on validation is behind that of the others."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from visllama.console import say
from visllama.errors import ConfigError


class Prune(Callback):
    """Report `val/loss` to a trial at each validation, and end the training where the search says so.

    The first rank asks, and all ranks do what it was told. What was ended is not judged.

    Args:
        journal: The file with the trials of the search.
        trial: The number of this one.

    Attributes:
        step: The step after which it was ended; None while it was not. A run that is resumed by itself is no trial.

    Raises:
        ConfigError: If nothing is validated.
    """

    def __init__(self, journal: str, trial: int) -> None:
        self.journal = Path(journal)
        self.trial = trial
        self.step: int | None = None

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if not trainer.limit_val_batches:
            raise ConfigError(
                "search.prune=true: trainer.val_check_interval=null validates nothing: give it a share, or "
                "search.prune=false"
            )

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or self.step is not None:
            return
        is_ended = trainer.is_global_zero and self._ask(trainer)
        answers = trainer.strategy.gather([int(is_ended)])
        if [1] in answers:
            self.step = trainer.global_step
            trainer.should_stop = True
            say(f"Pruned: val/loss is behind that of the other trials at step {self.step}")

    def _ask(self, trainer: pl.Trainer) -> bool:
        """Report the loss of the validation that has just ended; return whether the training is to end with it."""
        from visllama.tracking.study import report

        loss = float(trainer.callback_metrics["val/loss"])
        return report(self.journal, self.trial, loss, trainer.global_step, trainer.max_steps)
