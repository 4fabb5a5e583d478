"""The verb `train`: everything is checked and built without weights first.

What is slow to import (transformers, then Lightning) comes after what can be refused without it.
"""

from __future__ import annotations

import torch

from visllama.config.schema import TrainConfig
from visllama.training.assembly import Assembly, build_assembly


def assemble(config: TrainConfig) -> Assembly:
    """Build what the run is made of, before any weight is loaded or the run's folder is made.

    Raises:
        ConfigError: If the config contradicts itself, or names what is not there.
    """
    torch.set_num_threads(config.trainer.threads)
    return build_assembly(config)


def train(config: TrainConfig, assembly: Assembly) -> dict | None:
    """Train what was assembled, and judge it.

    Returns:
        The content of metrics.json on the first rank; None elsewhere and with `check_only`.
    """
    from visllama.training.run import run

    return run(config, assembly)
