"""The proofs of a run: frozen weights stay frozen, and all ranks hold the same trained ones."""

from __future__ import annotations

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from visllama.errors import ConfigError
from visllama.model.weights import frozen_hashes


class FrozenWeights(Callback):
    """Hash the frozen tensors before and after training, and stop with an error if one bit has changed."""

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.before = frozen_hashes(module.model)

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        after = frozen_hashes(module.model)
        changed = [part for part in self.before if after[part] != self.before[part]]
        if changed:
            raise RuntimeError(f"frozen weights changed in training: {', '.join(changed)}")


class SameEverywhere(Callback):
    """Refuse ranks of different configs: they would train something that nobody has asked for.

    Args:
        config: The configuration of this rank, as YAML.
    """

    def __init__(self, config: str) -> None:
        self.config = config

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        found: list = [None] * trainer.world_size
        if trainer.world_size > 1:
            dist.all_gather_object(found, self.config, group=trainer.strategy.control)
        for rank, other in enumerate(found[1:], start=1):
            if other != found[0]:
                lines = set(found[0].splitlines()) ^ set(other.splitlines())
                raise ConfigError(f"rank {rank} was given another config than rank 0: {'; '.join(sorted(lines)[:4])}")
