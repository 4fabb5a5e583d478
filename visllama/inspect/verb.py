"""The verb `inspect`: everything is checked as `train` checks it; no weight is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from visllama.config.schema import InspectConfig
from visllama.training.assembly import Assembly, build_assembly

if TYPE_CHECKING:
    from visllama.inspect.run import Inspected


def assemble(config: InspectConfig) -> Assembly:
    """Build what `train` would, with all of the model's parts on the meta device.

    Raises:
        ConfigError: If `train` would refuse the config.
    """
    torch.set_num_threads(config.trainer.threads)
    return build_assembly(replace(config, check_only=True))


def inspect(config: InspectConfig, assembly: Assembly) -> Inspected:
    """Show the first batches that `train` would see with this config, and write `inspect.html`.

    Raises:
        ConfigError: If a step has nothing to learn.
    """
    from visllama.inspect.run import inspect_batches  # here: slow to import, and the config may be refused before

    return inspect_batches(config, assembly)
