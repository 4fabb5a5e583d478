"""How far a run is, and how fast."""

from __future__ import annotations

import time

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, TQDMProgressBar


class Throughput(Callback):
    """Log samples a second over all ranks, validation left out, and the learning rate that each group's step took."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.seconds, self.samples = 0.0, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        self._start = time.perf_counter()
        # The module sets the next step's rates at the end of a step, before this is asked to log.
        self.rates = {group["name"]: group["lr"] for group in module.optimizers().param_groups}

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        self.seconds += time.perf_counter() - self._start
        self.samples += module.num_samples
        if trainer.global_step % trainer.log_every_n_steps == 0:
            module.log("train/samples_per_second", self.samples / self.seconds)
            for name, rate in self.rates.items():
                module.log(f"lr/{name.replace(', ', '_').replace(' ', '_')}", rate)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, which a run that goes on leaves without its total."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        super().on_train_start(trainer, module)
        self.train_progress_bar.total = self.total_train_batches
        self.train_progress_bar.initial = trainer.global_step  # for its rate
