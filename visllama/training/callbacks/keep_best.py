"""End a run with the weights of its best validation, in place of those of its last step."""

from __future__ import annotations

from typing import Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from visllama.console import say
from visllama.errors import ConfigError
from visllama.model.weights import trained_tensors
from visllama.training.lightning_parts import run_module


class KeepBest(Callback):
    """Keep the trained tensors of the best validation, and put them into the model when the training ends.

    The weights of that step are then written to `weights/` and judged. They are kept in the CPU's memory and in
    checkpoints, so that a resumed run has them too.

    Args:
        monitor: The name of the logged figure that is compared: `val/loss`, `val/loss/NAME` of one source, or any other
            that is logged before the end of a validation.
        mode: "min" if a smaller value is better, "max" if a larger one is.

    Attributes:
        best: The best value so far; None before the first validation.
        step: The number of optimizer steps before the best validation; 0 before the first one.

    Raises:
        ConfigError: If `mode` is another word; and later, when the run starts, if nothing is validated or the model is
            cut over ranks (FSDP); and at the first validation, if there is no such figure.
    """

    def __init__(self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min") -> None:
        if mode not in ("min", "max"):
            raise ConfigError(f"callbacks.keep_best.mode={mode}: choose min or max")

        self.monitor = monitor
        self.mode = mode
        self.best: float | None = None
        self.step = 0
        self._tensors: dict[str, torch.Tensor] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not trainer.limit_val_batches:
            raise ConfigError("callbacks=keep_best: trainer.val_check_interval=null validates nothing: give it a share")
        if getattr(trainer.strategy, "is_sharded", False):
            raise ConfigError("callbacks=keep_best: does not keep a model in shards: leave it out, or take ddp")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A run may validate once more after its training: its weights are those of the best step then.
        if trainer.state.fn != TrainerFn.FITTING:
            return

        figures = trainer.callback_metrics
        if self.monitor not in figures:
            names = ", ".join(name for name in figures if name.startswith("val/"))
            raise ConfigError(f"callbacks.keep_best.monitor={self.monitor}: there is no such figure; there are {names}")

        value = float(figures[self.monitor])
        if self._is_better(value):
            self.best = value
            self.step = trainer.global_step
            tensors = trained_tensors(run_module(pl_module).model)
            # Copies, because training goes on in these very tensors.
            self._tensors = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}

    def _is_better(self, value: float) -> bool:
        if self.best is None:
            return True

        return value < self.best if self.mode == "min" else value > self.best

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._tensors:
            return
        # Not strict, because the frozen tensors are not among them.
        run_module(pl_module).model.load_state_dict(self._tensors, strict=False)
        say(f"The weights are those of step {self.step}, whose {self.monitor} was the best: {self.best:.4f}")

    def state_dict(self) -> dict:
        return {"best": self.best, "step": self.step, "tensors": self._tensors}

    def load_state_dict(self, state_dict: dict) -> None:
        self.best = state_dict["best"]
        self.step = state_dict["step"]
        self._tensors = state_dict["tensors"]
