"""End a run of a hyperparameter search (a trial) early if its validation loss is behind that of the other trials."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from visllama.console import say
from visllama.errors import ConfigError
from visllama.training.lightning_parts import connected


class Prune(Callback):
    """Report `val/loss` to the search for hyperparameters after each validation; end the run if the search answers so.

    The first rank asks, and all ranks follow the answer. A run that was ended by the search is not judged.

    Args:
        journal: The path of the file in which the search keeps its trials.
        trial: The number of this run's trial in that file.

    Attributes:
        step: The number of steps after which the run was ended; None if it was not. No checkpoint holds it: a run that
            is resumed by itself is no trial.

    Raises:
        ConfigError: When the run starts, if nothing is validated.
    """

    def __init__(self, journal: str, trial: int) -> None:
        self.journal = Path(journal)
        self.trial = trial
        self.step: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not trainer.limit_val_batches:
            raise ConfigError(
                "search.prune=true: trainer.val_check_interval=null validates nothing: give it a share, or "
                "search.prune=false"
            )

    def on_validation_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        if trainer.state.fn != TrainerFn.FITTING or self.step is not None:
            return

        is_ended = trainer.is_global_zero and self._ask(trainer)
        answers = connected(trainer).strategy.gather([int(is_ended)])

        # One rank that went on alone would wait for the others for ever.
        if [1] in answers:
            self.step = trainer.global_step
            trainer.should_stop = True
            say(f"Pruned: val/loss is behind that of the other trials at step {self.step}")

    def _ask(self, trainer: pl.Trainer) -> bool:
        """Report the loss of the validation that has just ended, and return whether the training is to end with it."""
        # Here, because it imports an extra.
        from visllama.tracking.study import report

        loss = float(trainer.callback_metrics["val/loss"])
        return report(self.journal, self.trial, loss, trainer.global_step, trainer.max_steps)
