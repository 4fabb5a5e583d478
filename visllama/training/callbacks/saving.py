"""When a run is saved: on a schedule, at its end, and when it is told to leave."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
from lightning.pytorch.utilities import rank_zero_only

from visllama.checkpoint.folder import drop_newer, keep_newest, name_of
from visllama.console import say
from visllama.errors import ConfigError
from visllama.machine import preemption


class Saving(CheckpointCallback):
    """Save after steps, and leave after the step in which a rank was told to.

    Lightning calls it last: a checkpoint holds what the other callbacks have counted.

    Args:
        run: The run's folder.
        every_steps: None is at each validation; the last step is always saved.
        keep: How many checkpoints stay.
        next_command: What goes on with the run, quoted when it was told to leave.
    """

    def __init__(self, run: Path, every_steps: int | None, keep: int, next_command: str) -> None:
        self.run, self.every_steps, self.keep, self.next_command = run, every_steps, keep, next_command
        self._saved = -1

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict) -> None:
        self._saved = checkpoint["global_step"]

    def on_train_start(self, trainer: pl.Trainer, *_) -> None:
        rank_zero_only(drop_newer)(self.run, trainer.global_step)
        preemption.begin_training()

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        if self.every_steps and trainer.global_step % self.every_steps == 0:
            self.save(trainer)
        self._leave_if_told(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_) -> None:
        self._leave_if_told(trainer)

    def on_validation_end(self, trainer: pl.Trainer, *_) -> None:
        if self.every_steps is None:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, *_) -> None:
        self.save(trainer)
        preemption.end_training()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, preemption.Preempted | FloatingPointError | ConfigError):
            preemption.end_training()  # as when another rank, told at its start, has already left

    def save(self, trainer: pl.Trainer) -> None:
        """Save, unless this step is."""
        if self._saved != trainer.global_step:
            trainer.save_checkpoint(self.run / "checkpoints" / name_of(trainer.global_step))
            self._saved = trainer.global_step
            rank_zero_only(keep_newest)(self.run, self.keep)

    def _leave_if_told(self, trainer: pl.Trainer) -> None:
        what = max(told for (told,) in trainer.strategy.gather([preemption.told()]))
        if what:
            self.save(trainer)
            if trainer.is_global_zero:
                say(f"\nTold to leave: saved at step {trainer.global_step}. It goes on by:  {self.next_command}")
            raise preemption.Preempted(what)
