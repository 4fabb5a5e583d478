"""The verb `train`: everything is checked and built without weights first.

What is slow to import (transformers, then Lightning) comes after what can be refused without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig

from visllama.config.checks import check_train
from visllama.machine import preemption
from visllama.training.assembly import plan

if TYPE_CHECKING:
    pass


def train(cfg: DictConfig) -> dict | None:
    """Check, build, train, judge; gives metrics.json's content on rank 0, None elsewhere and with `check_only`.

    Raises:
        ConfigError: If the config contradicts itself, or names what is not there; nothing is loaded then.
    """
    check_train(cfg)
    preemption.configure(cfg.trainer.preempted_exit_code, cfg.trainer.requeue)
    torch.set_num_threads(cfg.trainer.threads)
    planned = plan(cfg)
    from visllama.training.run import run

    return run(cfg, planned)
