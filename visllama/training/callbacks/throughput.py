"""Measure and log the speed of a run: samples, tokens and operations a second, memory, and the wait for data."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from visllama.data.datamodule import StepLoader
from visllama.machine.cards import find_card
from visllama.machine.devices import frozen_dtype, peak_memory_bytes
from visllama.model.flops import flops
from visllama.model.shapes import Shapes
from visllama.training.lightning_parts import connected, optimizer_of, run_module

if TYPE_CHECKING:
    from visllama.training.module import VisLlamaModule

_GIB = 2**30


class Throughput(Callback):
    """Log speeds and totals over all ranks every `trainer.log_every_steps`, with the learning rates at that step.

    A speed is taken over the steps since the last logged one, in wall-clock time: computing, waiting for data, and
    saving in between. A validation, and all that follows it until the next step, is left out. Nothing here waits for a
    GPU: `NonFinite` lets the program run ahead of it by one step at most.

    Args:
        shapes: Sizes of the model, from which its floating-point operations are counted; None logs no such figures.
        precision: The run's precision, as `find_precision` returns it, which decides the peak rate of the GPU.

    Attributes:
        seconds: Seconds of the measured steps since the run began, also before it was resumed.
        samples: Samples of the measured steps.
        targets: Supervised tokens (those that the model learns to predict) of the measured steps.
        rates: The learning rate of each group of the optimizer at the running step, by the group's name; set at the
            start of the first step.
    """

    def __init__(self, shapes: Shapes | None = None, precision: str = "32-true") -> None:
        self.shapes = shapes
        self.precision = precision
        self.seconds = 0.0
        self.samples = 0
        self.targets = 0

        # None while the clock is stopped.
        self._started: float | None = None

    @property
    def samples_per_second(self) -> float | None:
        """Mean samples a second of the whole run over all ranks, validations left out; None before the first log."""
        return self.samples / self.seconds if self.seconds else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = None
        self._peak_flops = self._read_peak(trainer, pl_module.device)
        self._begin_window()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object, **__: object
    ) -> None:
        if self._started is None:
            self._start_clock(trainer)

        # Kept now, because at the end of a step, before `_log`, the module sets the rates of the next one.
        self.rates = {group["name"]: group["lr"] for group in optimizer_of(pl_module).param_groups}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object, **__: object) -> None:
        module = run_module(pl_module)
        self._num_steps += 1
        self._num_samples += module.num_samples
        self._num_targets += module.num_targets
        self._num_tokens += module.num_tokens
        self._num_images += module.num_images

        if trainer.global_step % connected(trainer).log_every_n_steps == 0:
            self._stop_clock(trainer)
            self._log(module)
            self._begin_window()
            self._start_clock(trainer)

    def on_validation_start(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._stop_clock(trainer)

    def state_dict(self) -> dict:
        return {"seconds": self.seconds, "samples": self.samples, "targets": self.targets}

    def load_state_dict(self, state_dict: dict) -> None:
        self.seconds = state_dict["seconds"]
        self.samples = state_dict["samples"]
        self.targets = state_dict["targets"]

    def _begin_window(self) -> None:
        """Set to zero what is counted between two logged steps (a window)."""
        self._window_s = 0.0
        self._waited_s = 0.0

        self._num_steps = 0
        self._num_samples = 0
        self._num_targets = 0
        self._num_tokens = 0
        self._num_images = 0

    def _start_clock(self, trainer: pl.Trainer) -> None:
        self._started = time.perf_counter()
        self._waited_before = _waited_s(trainer)

    def _stop_clock(self, trainer: pl.Trainer) -> None:
        """Add the time since `_start_clock` to the window, and stop the clock; nothing if it stands."""
        if self._started is not None:
            self._window_s += time.perf_counter() - self._started
            self._waited_s += _waited_s(trainer) - self._waited_before
            self._started = None

    def _log(self, module: VisLlamaModule) -> None:
        """Add the window to the totals, and log its speeds through a module."""
        self.seconds += self._window_s
        self.samples += self._num_samples
        self.targets += self._num_targets
        peak_memory_gib = peak_memory_bytes(module.device) / _GIB

        module.log("train/samples_per_second", self._num_samples / self._window_s)
        module.log("train/target_tokens_per_second", self._num_targets / self._window_s)
        module.log("train/samples_total", float(self.samples))
        module.log("train/target_tokens_total", float(self.targets))
        module.log("train/step_s", self._window_s / self._num_steps)
        module.log("train/data_wait_s", self._waited_s / self._num_steps)
        module.log("train/peak_memory_gib", peak_memory_gib)

        if self.shapes is not None:
            rate = self._count_flops(self.shapes) / self._window_s
            module.log("train/model_flops_per_second", rate)
            # The share of the GPUs' peak that the model's own arithmetic takes ("model FLOPs utilisation").
            if self._peak_flops is not None:
                module.log("train/mfu", rate / self._peak_flops)

        for name, rate in self.rates.items():
            # "connector, no decay" is logged as lr/connector_no_decay.
            key = name.replace(", ", "_").replace(" ", "_")
            module.log(f"lr/{key}", rate)

    def _count_flops(self, shapes: Shapes) -> float:
        """Return the number of floating-point operations of the window's steps, counted as `visllama plan` does.

        They are those of samples of mean length. What is computed a second time to save memory is not counted.
        """
        tokens_a_sample = self._num_tokens / self._num_samples
        images_a_sample = self._num_images / self._num_samples
        parts = flops(shapes, tokens_a_sample, recomputes=False, images=images_a_sample)
        count_a_sample = sum(part.count for part in parts)
        return self._num_samples * count_a_sample

    def _read_peak(self, trainer: pl.Trainer, device: torch.device) -> float | None:
        """Return the peak of all GPUs together in floating-point operations a second.

        None if the device is no GPU that `find_card` knows, or if no operations are counted.
        """
        if self.shapes is None or device.type != "cuda":
            return None

        device_name = torch.cuda.get_device_name(device)
        card = find_card(device_name)
        if card is None:
            return None

        num_bytes = frozen_dtype(self.precision).itemsize
        # Trained weights are kept in fp32 at least, and without autocast they are multiplied in it.
        if self.shapes.is_trained("language_model") and not self.precision.endswith("-mixed"):
            num_bytes = max(4, num_bytes)
        return trainer.world_size * card.flops(num_bytes)


def _waited_s(trainer: pl.Trainer) -> float:
    """Return the seconds for which training has waited for data so far."""
    return cast(StepLoader, trainer.train_dataloader).waited_s
