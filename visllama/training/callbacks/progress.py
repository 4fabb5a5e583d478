"""Show the progress of a run, as a bar on a terminal and as lines elsewhere."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from typing import cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from visllama.console import bars, is_terminal, log, say
from visllama.training.lightning_parts import connected

_DRAW_EVERY_S = 0.2
"""Seconds between two drawings of the bars."""
_TELL_EVERY_S = 10.0
"""Seconds between two printed lines where there is no terminal."""


class StepProgress(Callback):
    """Show a run's step, loss, speed and time left: a bar on a terminal, and a line in the log at each logged step.

    Every `trainer.log_every_steps`-th step is logged. Without a terminal its line is printed too, but not more often
    than every ten seconds.
    """

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._training: TaskID | None = None
        self._validation: TaskID | None = None
        self._drawn_at = -math.inf
        self._printed_at = -math.inf

    def on_train_start(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        self._started = time.perf_counter()
        self._first_step = trainer.global_step
        self._training = self._add("train", trainer.max_steps)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        assert self._bars is not None and self._training is not None, "on_train_start comes first"

        step = trainer.global_step
        self._bars.update(self._training, completed=step)

        # Not at each step: reading a figure waits for the GPU.
        if step % connected(trainer).log_every_n_steps == 0:
            self._show_figures(trainer, self._bars, self._training)
        self._draw()

    def _show_figures(self, trainer: pl.Trainer, progress: Progress, task: TaskID) -> None:
        """Show the loss, speed and time left at a logged step: behind the bar, and as a line with the learning rate."""
        figures = trainer.callback_metrics
        # Of the parts' rates, the highest is shown.
        rates = [value for name, value in figures.items() if name.startswith("lr/")]
        highest_rate = max(rates)
        seconds = round(self._seconds_left(trainer))

        loss = f"loss {figures['train/loss']:.3f}"
        rate = f"lr {highest_rate:.2e}"
        speed = f"{figures['train/samples_per_second']:.0f} samples/s"
        left = f"{timedelta(seconds=seconds)} left"
        progress.update(task, figures=f"{loss}  {speed}  {left}")
        self._tell(f"step {trainer.global_step} of {trainer.max_steps}: {loss}  {rate}  {speed}  {left}")

    def on_validation_start(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        num_batches = cast("list[int]", trainer.num_val_batches)
        self._validation = self._add("validate", sum(num_batches))

    def on_validation_batch_end(self, *_: object, **__: object) -> None:
        assert self._bars is not None and self._validation is not None, "on_validation_start comes first"
        self._bars.advance(self._validation)
        self._draw()

    def on_validation_end(self, *_: object, **__: object) -> None:
        assert self._bars is not None and self._validation is not None, "on_validation_start comes first"
        self._bars.remove_task(self._validation)

    def teardown(self, *_: object, **__: object) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def on_exception(self, *_: object, **__: object) -> None:
        self.teardown()

    def _add(self, name: str, total: int) -> TaskID:
        """Return a new bar's id; the first bar begins the display.

        Args:
            name: The text before the bar.
            total: The number of steps or batches at which it is full.
        """
        if self._bars is None:
            # `_draw` draws them, and no thread does.
            self._bars = bars(
                TextColumn("{task.description}"),
                BarColumn(None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                auto_refresh=False,
            )
            self._bars.start()

        return self._bars.add_task(name, total=total, figures="")

    def _tell(self, line: str) -> None:
        """Write a line to the log, and print it too if there is no terminal and no line was printed for ten seconds."""
        now = time.perf_counter()
        if is_terminal() or now - self._printed_at < _TELL_EVERY_S:
            log(line)
        else:
            say(line)
            self._printed_at = now

    def _draw(self) -> None:
        assert self._bars is not None, "there is a bar to draw"
        now = time.perf_counter()
        if now - self._drawn_at >= _DRAW_EVERY_S:
            self._bars.refresh()
            self._drawn_at = now

    def _seconds_left(self, trainer: pl.Trainer) -> float:
        """Return the seconds that the remaining steps take, validations included, at this process's speed so far."""
        seconds = time.perf_counter() - self._started
        num_done = trainer.global_step - self._first_step
        num_left = trainer.max_steps - trainer.global_step
        seconds_a_step = seconds / num_done
        return seconds_a_step * num_left
