"""The verb `train`: check and build everything without weights first, then train.

Slow imports (transformers, then Lightning) come after the checks that need neither.
"""

from __future__ import annotations

import torch

from visllama.config.schema import TrainConfig
from visllama.training.assembly import Assembly, build_assembly


def assemble(config: TrainConfig) -> Assembly:
    """Build the parts of a run, before any weight is loaded or the run's folder is made.

    Raises:
        ConfigError: If the config contradicts itself, or names something that does not exist.
    """
    torch.set_num_threads(config.trainer.threads)
    return build_assembly(config)


def train(config: TrainConfig, assembly: Assembly) -> dict | None:
    """Train the assembled model, and judge it.

    Returns:
        The content of metrics.json on the first rank; None elsewhere and with `check_only`.
    """
    # Here, because it imports Lightning.
    from visllama.training.run import run

    return run(config, assembly)
