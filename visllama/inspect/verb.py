"""The verb `inspect`: everything is checked as `train` checks it; no weight is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig

from visllama.config.checks import check_inspect
from visllama.training.assembly import plan

if TYPE_CHECKING:
    from visllama.inspect.run import Inspected


def inspect(cfg: DictConfig) -> Inspected:
    """Show the first batches that `train` would see with this config, and write `inspect.html`.

    Raises:
        ConfigError: If `train` would refuse the config, or a step has nothing to learn.
    """
    check_inspect(cfg)
    torch.set_num_threads(cfg.trainer.threads)
    without_weights = cfg.copy()
    without_weights.check_only = True  # the model's parts are on the meta device
    planned = plan(without_weights)
    from visllama.inspect.run import run  # here: slow to import, and the config may be refused before

    return run(cfg, planned)
