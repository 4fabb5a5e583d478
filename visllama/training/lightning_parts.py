"""Return a run's own module, data, strategy and optimizer from Lightning's objects, under their precise types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer

if TYPE_CHECKING:
    from visllama.data.datamodule import TrainingData
    from visllama.parallel.strategy import VisLlamaStrategy
    from visllama.training.module import VisLlamaModule

T = TypeVar("T")


class ConnectedTrainer(Protocol):
    """The attributes that Lightning sets on a run's Trainer, and that its class does not declare as precisely.

    Attributes:
        callbacks: The callbacks, in the order in which they are called.
        datamodule: The data module that `fit` or `validate` was called with.
        log_every_n_steps: The number of steps between two logged ones.
        strategy: The strategy of the run.
    """

    callbacks: list[Callback]
    datamodule: TrainingData
    log_every_n_steps: int
    strategy: VisLlamaStrategy


def connected(trainer: pl.Trainer) -> ConnectedTrainer:
    """Return the same trainer, typed as one that has this project's data, strategy and callbacks.

    Nothing is checked or copied; only a type checker sees a difference.
    """
    return cast("ConnectedTrainer", trainer)


def run_module(pl_module: pl.LightningModule) -> VisLlamaModule:
    """Return the same module, typed as the `VisLlamaModule` that a run trains; nothing is checked or copied."""
    return cast("VisLlamaModule", pl_module)


def optimizer_of(pl_module: pl.LightningModule) -> LightningOptimizer:
    """Return the one optimizer of a run, in Lightning's wrapper, whose `step` counts as a step of the trainer."""
    return cast(LightningOptimizer, pl_module.optimizers())


def gather_objects(trainer: pl.Trainer, value: T) -> list[T]:
    """Return the values that all ranks have passed, in the order of ranks; all ranks have to call this together.

    The values are exchanged on the CPU, so that no rank waits for a GPU. They have to be picklable.

    Args:
        trainer: The run's trainer, connected to its strategy.
        value: This rank's value.
    """
    # One process alone has no group to exchange in.
    if trainer.world_size == 1:
        return [value]

    gathered: list = [None] * trainer.world_size
    dist.all_gather_object(gathered, value, group=connected(trainer).strategy.control)
    return gathered
