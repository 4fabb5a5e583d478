"""The verb `inspect`: everything is checked as `train` checks it; no weight is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig

from visllama.training.assembly import Assembly, build_assembly

if TYPE_CHECKING:
    from visllama.inspect.run import Inspected


def assemble(cfg: DictConfig) -> Assembly:
    """Build what `train` would, with all of the model's parts on the meta device.

    Raises:
        ConfigError: If `train` would refuse the config.
    """
    torch.set_num_threads(cfg.trainer.threads)
    without_weights = cfg.copy()
    without_weights.check_only = True
    return build_assembly(without_weights)


def inspect(cfg: DictConfig, assembly: Assembly) -> Inspected:
    """Show the first batches that `train` would see with this config, and write `inspect.html`.

    Raises:
        ConfigError: If a step has nothing to learn.
    """
    from visllama.inspect.run import run  # here: slow to import, and the config may be refused before

    return run(cfg, assembly)
