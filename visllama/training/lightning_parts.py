"""Typed access to what Lightning hands to callbacks: a run's own module, data, strategy and optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer

from visllama.data.datamodule import TrainingData
from visllama.parallel.strategy import VisLlamaStrategy

if TYPE_CHECKING:
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
    """Return the same trainer, typed by the attributes that it has once it is made."""
    return cast("ConnectedTrainer", trainer)


def run_module(pl_module: pl.LightningModule) -> VisLlamaModule:
    """Return the same module, typed as the one that a run trains."""
    return cast("VisLlamaModule", pl_module)


def optimizer_of(pl_module: pl.LightningModule) -> LightningOptimizer:
    """Return the only optimizer of a run, as Lightning wraps it."""
    return cast(LightningOptimizer, pl_module.optimizers())


def gather_objects(trainer: pl.Trainer, value: T) -> list[T]:
    """Return the value of every rank, in the order of ranks; all ranks call this together.

    The values are exchanged on the CPU, so no rank waits for a GPU.
    """
    if trainer.world_size == 1:
        return [value]

    gathered: list = [None] * trainer.world_size
    dist.all_gather_object(gathered, value, group=connected(trainer).strategy.control)
    return gathered
