"""How far a run is."""

from __future__ import annotations

import math
import time
from datetime import timedelta

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from visllama.console import bars, is_terminal, log, say

_DRAW_EVERY_S = 0.2
_TELL_EVERY_S = 10.0


class StepProgress(Callback):
    """Show how far a run is: a bar on a terminal, and a line in the log every `trainer.log_every_steps`.

    Where there is no terminal, such a line is printed every ten seconds.
    """

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._training: TaskID | None = None
        self._validation: TaskID | None = None
        self._drawn = -math.inf
        self._told = -math.inf

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._started = time.perf_counter()
        self._first_step = trainer.global_step
        self._training = self._add("train", trainer.max_steps)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        step = trainer.global_step
        self._bars.update(self._training, completed=step)
        if step % trainer.log_every_n_steps == 0:  # to read a figure is to wait for the GPU
            figures = trainer.callback_metrics
            loss = f"loss {figures['train/loss']:.3f}"
            rate = max(value for name, value in figures.items() if name.startswith("lr/"))
            speed = f"{figures['train/samples_per_second']:.0f} samples/s"
            left = f"{timedelta(seconds=round(self._seconds_left(trainer)))} left"
            self._bars.update(self._training, figures=f"{loss}  {speed}  {left}")
            self._tell(f"step {step} of {trainer.max_steps}: {loss}  lr {rate:.2e}  {speed}  {left}")
        self._draw()

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._validation = self._add("validate", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        self._bars.advance(self._validation)
        self._draw()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._bars.remove_task(self._validation)

    def teardown(self, *_, **__) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def on_exception(self, *_) -> None:
        self.teardown()

    def _add(self, name: str, total: int) -> TaskID:
        """Add a bar, the first of which shows them."""
        if self._bars is None:
            columns = TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn()
            self._bars = bars(*columns, TextColumn("{task.fields[figures]}"), auto_refresh=False)
            self._bars.start()
        return self._bars.add_task(name, total=total, figures="")

    def _tell(self, line: str) -> None:
        now = time.perf_counter()
        if is_terminal() or now - self._told < _TELL_EVERY_S:
            log(line)
        else:
            say(line)
            self._told = now

    def _draw(self, at_once: bool = False) -> None:
        now = time.perf_counter()
        if at_once or now - self._drawn >= _DRAW_EVERY_S:
            self._bars.refresh()
            self._drawn = now

    def _seconds_left(self, trainer: pl.Trainer) -> float:
        """Return how long the rest of the steps takes, with its validations, if it goes on as before."""
        seconds = time.perf_counter() - self._started
        return seconds / (trainer.global_step - self._first_step) * (trainer.max_steps - trainer.global_step)
