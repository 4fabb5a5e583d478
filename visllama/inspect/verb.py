"""The verb `inspect`: show batches as `train` would see them, or with `weights=` what a trained connector has learned.

For batches everything is checked as `train` checks it, and no weight is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from visllama.config.dry_run import check_decodings, check_machine
from visllama.config.schema import InspectConfig
from visllama.plugins import import_plugins
from visllama.training.assembly import Assembly, build_assembly

if TYPE_CHECKING:
    from visllama.inspect.connector.run import Chosen
    from visllama.inspect.connector.study import ConnectorStudy
    from visllama.inspect.run import Inspected


def assemble(config: InspectConfig) -> Assembly | Chosen:
    """Check the configuration, and build what `inspect` needs; no weight is loaded.

    Args:
        config: The configuration of the verb.

    Returns:
        Without `weights`, all that `train` would be run with, the model's parts on the meta device (without values).
        With `weights`, the evaluation whose pictures are used, and its source.

    Raises:
        ConfigError: If `train` would refuse the configuration; with `weights`, if the folder holds no weights of
            visllama, or the pictures' source cannot be built.
    """
    if config.weights is not None:
        # Imported here, because batches need none of it.
        from visllama.inspect.connector.run import choose_source

        import_plugins(config.plugins)
        check_machine(config.trainer)
        check_decodings(config)
        return choose_source(config)

    torch.set_num_threads(config.trainer.threads)
    return build_assembly(replace(config, check_only=True))


def inspect(config: InspectConfig, assembled: Assembly | Chosen) -> Inspected | ConnectorStudy:
    """Print the first batches that `train` would see or, with `config.weights`, a study of these weights' connector.

    The run's folder gets `inspect.html`, or with `weights` `inspect_connector.html` and `inspect.json`. With
    `config.check_only` no file is written.

    Args:
        config: The configuration.
        assembled: What `assemble` returned for this configuration: an `Assembly` without `weights`, else a `Chosen`.

    Returns:
        What was printed: an `Inspected` for batches, a `ConnectorStudy` for a connector.

    Raises:
        ConfigError: If a training step has no supervised token; with `weights`, if the weights cannot be loaded, or the
            pictures cannot be read.
    """
    # Imported here, because both are slow to import, and the configuration may be refused before.
    if isinstance(assembled, Assembly):
        from visllama.inspect.run import inspect_batches

        return inspect_batches(config, assembled)
    from visllama.inspect.connector.run import inspect_connector

    return inspect_connector(config, assembled)
