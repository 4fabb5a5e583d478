"""How fast a run is: rates, totals, the model's arithmetic, memory, and the time that its data is waited for."""

from __future__ import annotations

import time

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from visllama.machine.cards import find_card
from visllama.machine.devices import frozen_dtype, peak_memory_bytes
from visllama.model.flops import flops
from visllama.model.shapes import Shapes

_GIB = 2**30


class Throughput(Callback):
    """Log rates and totals over all ranks, and the learning rate that each group's step took.

    A rate is one of the steps since the last logged ones, by the clock on the wall: what is computed, what the data is
    waited for, and what is saved in between. A validation, with all that follows it until the next step, is left out.
    Nothing here waits for a GPU: `NonFinite` lets the program run ahead of it by one step at most.

    Args:
        shapes: Sizes of the model, from which its arithmetic is counted; None counts none.
        precision: The name of the run's precision, for the peak of the GPU.

    Attributes:
        seconds: Time of the measured steps since the run began, also before it was resumed.
        samples: Samples of those steps.
        targets: Supervised tokens of those steps.
    """

    def __init__(self, shapes: Shapes | None = None, precision: str = "32-true") -> None:
        self.shapes, self.precision = shapes, precision
        self.seconds, self.samples, self.targets = 0.0, 0, 0
        self._started: float | None = None  # the clock stands still

    @property
    def samples_per_second(self) -> float | None:
        """The mean rate of the whole run; None before a step was measured."""
        return self.samples / self.seconds if self.seconds else None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._started = None
        self._peak_flops = self._read_peak(trainer, module.device)
        self._begin_window()

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        if self._started is None:
            self._start_clock(trainer)
        # The module sets the next step's rates at the end of a step, before this is asked to log.
        self.rates = {group["name"]: group["lr"] for group in module.optimizers().param_groups}

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        self._num_steps += 1
        self._num_samples += module.num_samples
        self._num_targets += module.num_targets
        self._num_tokens += module.num_tokens
        self._num_images += module.num_images
        if trainer.global_step % trainer.log_every_n_steps == 0:
            self._stop_clock(trainer)
            self._log(module)
            self._begin_window()
            self._start_clock(trainer)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._stop_clock(trainer)

    def state_dict(self) -> dict:
        return {"seconds": self.seconds, "samples": self.samples, "targets": self.targets}

    def load_state_dict(self, state: dict) -> None:
        self.seconds, self.samples, self.targets = state["seconds"], state["samples"], state["targets"]

    def _begin_window(self) -> None:
        """Begin to count the steps of the next rates."""
        self._window_s = self._waited_s = 0.0
        self._num_steps = self._num_samples = self._num_targets = self._num_tokens = self._num_images = 0

    def _start_clock(self, trainer: pl.Trainer) -> None:
        self._started = time.perf_counter()
        self._waited_before = trainer.train_dataloader.waited_s

    def _stop_clock(self, trainer: pl.Trainer) -> None:
        """Add the time since the clock was started to the window."""
        if self._started is not None:
            self._window_s += time.perf_counter() - self._started
            self._waited_s += trainer.train_dataloader.waited_s - self._waited_before
            self._started = None

    def _log(self, module: pl.LightningModule) -> None:
        self.seconds += self._window_s
        self.samples += self._num_samples
        self.targets += self._num_targets
        module.log("train/samples_per_second", self._num_samples / self._window_s)
        module.log("train/target_tokens_per_second", self._num_targets / self._window_s)
        module.log("train/samples_total", float(self.samples))
        module.log("train/target_tokens_total", float(self.targets))
        module.log("train/step_s", self._window_s / self._num_steps)
        module.log("train/data_wait_s", self._waited_s / self._num_steps)
        module.log("train/peak_memory_gib", peak_memory_bytes(module.device) / _GIB)
        if self.shapes is not None:
            rate = self._count_flops() / self._window_s
            module.log("train/model_flops_per_second", rate)
            if self._peak_flops is not None:
                module.log("train/mfu", rate / self._peak_flops)
        for name, rate in self.rates.items():
            module.log(f"lr/{name.replace(', ', '_').replace(' ', '_')}", rate)

    def _count_flops(self) -> float:
        """Count the arithmetic of the window's steps, as `visllama plan` does: of samples of mean length.

        What is computed a second time to save memory is none of the model's.
        """
        tokens, images = self._num_tokens / self._num_samples, self._num_images / self._num_samples
        parts = flops(self.shapes, tokens, recomputes=False, images=images)
        return self._num_samples * sum(part.count for part in parts)

    def _read_peak(self, trainer: pl.Trainer, device: torch.device) -> float | None:
        """Return the operations a second that all GPUs could do at most; None where that is not known."""
        if self.shapes is None or device.type != "cuda":
            return None
        card = find_card(torch.cuda.get_device_name(device))
        if card is None:
            return None
        num_bytes = frozen_dtype(self.precision).itemsize
        if self.shapes.is_trained("language_model") and not self.precision.endswith("-mixed"):
            num_bytes = max(4, num_bytes)  # what trains is kept, and multiplied, in fp32 at least
        return trainer.world_size * card.flops(num_bytes)
