"""Check that frozen weights stay the same in a run, to the bit, and that all its ranks have the same configuration."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from visllama.errors import ConfigError
from visllama.model.weights import frozen_hashes
from visllama.training.lightning_parts import gather_objects, run_module


class FrozenWeights(Callback):
    """Hash the frozen tensors of the base models before and after training, and raise RuntimeError if they differ.

    Attributes:
        before: The hash of each base model's frozen tensors before the training, by the part's name
            ("vision_encoder", "language_model"); set when `fit` starts.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.before = frozen_hashes(run_module(pl_module).model)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        after = frozen_hashes(run_module(pl_module).model)
        changed_parts = [part for part in self.before if after[part] != self.before[part]]
        if changed_parts:
            parts = ", ".join(changed_parts)
            raise RuntimeError(f"frozen weights changed in training: {parts}")


class SameEverywhere(Callback):
    """Raise `ConfigError` when a run starts if its ranks have different configurations, naming lines that differ.

    Args:
        config: The configuration of this rank, as YAML.
    """

    def __init__(self, config: str) -> None:
        self.config = config

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # On every rank, so that all of them stop together.
        first, *others = gather_objects(trainer, self.config)

        for rank, other in enumerate(others, start=1):
            if other != first:
                lines_of_first = set(first.splitlines())
                lines_of_other = set(other.splitlines())
                differing_lines = sorted(lines_of_first ^ lines_of_other)
                shown_lines = "; ".join(differing_lines[:4])
                raise ConfigError(f"rank {rank} was given another config than rank 0: {shown_lines}")
