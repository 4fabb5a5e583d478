"""The model of a config on the meta device, built without downloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from visllama.errors import ConfigError
from visllama.model.visllama import VisLlama
from visllama.model.weights import build_model
from visllama.plan.published import without_downloads
from visllama.plugins import ROLES


def build_shapes(
    parts: Mapping[str, Mapping],
    trainable: Sequence[str],
    plugins: Sequence[str] = (),
    models: Path | str | None = None,
) -> VisLlama:
    """Build a model on the meta device; its base models need not have been downloaded.

    Args:
        parts: Description of the parts, as `build_model` takes it.
        trainable: Names of the parts that learn.
        plugins: The user's packages.
        models: The folder of downloaded models (`paths.models`).

    Raises:
        ConfigError: If a part cannot be built, or the shapes of a base model are not known.
    """
    with TemporaryDirectory() as scratch:
        replaced_parts = without_downloads(parts, plugins, models, Path(scratch))
        try:
            with torch.device("meta"):
                model = build_model(replaced_parts, trainable, plugins=plugins, models=models)
            return model.train()
        except ConfigError as error:
            # The message names a folder in `scratch`, and the user knows the path of the config.
            message = str(error)
            for role in ROLES:
                scratch_path = replaced_parts[role]["arguments"].get("path")
                if scratch_path:
                    message = message.replace(scratch_path, parts[role]["arguments"].get("path"))
            raise ConfigError(message) from error
