"""Save checkpoints of a run: at regular steps or validations, at its end, and when it is asked to leave."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
from lightning.pytorch.utilities import rank_zero_only

from visllama.checkpoint.folder import drop_newer, keep_newest, name_of
from visllama.console import say
from visllama.errors import ConfigError
from visllama.machine import preemption
from visllama.training.lightning_parts import connected


class Saving(CheckpointCallback):
    """Save checkpoints, and end the run after a step or validation batch if one of its ranks has a request to leave.

    A request comes from SIGTERM, SIGUSR1 or Ctrl-C (`visllama.machine.preemption`). Then all ranks save and raise
    `Preempted`. This has to be the last callback: a checkpoint holds what the others have counted.

    Args:
        run: The run's folder; checkpoints lie in its `checkpoints/`.
        every_steps: The number of steps between two checkpoints; None saves at each validation. The last step is
            always saved.
        keep: The number of the newest checkpoints that stay on the disk.
        next_command: The command line that resumes the run, printed when it leaves.
    """

    def __init__(self, run: Path, every_steps: int | None, keep: int, next_command: str) -> None:
        self.run = run
        self.every_steps = every_steps
        self.keep = keep
        self.next_command = next_command
        self._saved_step = -1

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        self._saved_step = checkpoint["global_step"]

    def on_train_start(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        # Checkpoints of later steps are there if they were damaged, and passed over.
        rank_zero_only(drop_newer)(self.run, trainer.global_step)
        preemption.begin_training()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        if self.every_steps and trainer.global_step % self.every_steps == 0:
            self.save(trainer)

        self._leave_if_told(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        self._leave_if_told(trainer)

    def on_validation_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        if self.every_steps is None:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        self.save(trainer)
        preemption.end_training()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # Another rank, told at its start, may have left, so that a collective has failed on this one. These three
        # types are errors of the run's own, which end it anyway.
        if not isinstance(exception, preemption.Preempted | FloatingPointError | ConfigError):
            preemption.end_training()

    def save(self, trainer: pl.Trainer) -> None:
        """Write a checkpoint of the trainer's current step, and remove old ones; all ranks have to call it together.

        Nothing is done if this step was the last one saved.

        Args:
            trainer: The run's trainer.

        Raises:
            SaveFailed: If the checkpoint cannot be written.
        """
        step = trainer.global_step
        if self._saved_step == step:
            return

        trainer.save_checkpoint(self.run / "checkpoints" / name_of(step))
        self._saved_step = step
        rank_zero_only(keep_newest)(self.run, self.keep)

    def _leave_if_told(self, trainer: pl.Trainer) -> None:
        """Save and raise `Preempted` on all ranks if one of them has a request to leave; all ranks call it together.

        Raises:
            Preempted: With the greatest request of any rank: `REQUEUE` before `LEAVE`.
        """
        # All ranks ask at the same step, so they agree without waiting for each other at any other place.
        requests = connected(trainer).strategy.gather([preemption.pending_request()])
        strongest = max(request for (request,) in requests)
        if not strongest:
            return

        self.save(trainer)
        if trainer.is_global_zero:
            say(f"\nTold to leave: saved at step {trainer.global_step}. It goes on by:  {self.next_command}")
        raise preemption.Preempted(strongest)
