"""The verb `train` of the command line: check the configuration and build all parts, then train and judge.

Slow imports (transformers, then Lightning) come after the checks that need neither.
"""

from __future__ import annotations

import torch

from visllama.config.schema import TrainConfig
from visllama.training.assembly import Assembly, build_assembly


def assemble(config: TrainConfig) -> Assembly:
    """Check a run's configuration, and build its sources, order of samples and model, for `train`.

    No pretrained weight is read, and nothing is written to the run's folder. torch's number of threads in this process
    is set to `trainer.threads`.

    Args:
        config: The configuration of the run, resolved; it is not changed.

    Raises:
        ConfigError: If the config contradicts itself, names something that does not exist, or its data is too damaged.
    """
    torch.set_num_threads(config.trainer.threads)
    return build_assembly(config)


def train(config: TrainConfig, assembly: Assembly) -> dict | None:
    """Train the model, judge it by the config's evaluations, and write weights and results to the run's folder.

    With `config.check_only` it only prints the tables of the run. With several devices it starts the other ranks.

    Args:
        config: The configuration of the run.
        assembly: The result of `assemble` for the same configuration. Its model is trained in place.

    Returns:
        The content of metrics.json on the first rank; None on other ranks and with `check_only`.
    """
    # Here, because it imports Lightning.
    from visllama.training.run import run

    return run(config, assembly)
