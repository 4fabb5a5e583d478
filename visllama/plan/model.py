"""Build the model of a config on the meta device (shapes without weights), without a download."""

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
    """Build a model on the meta device, in training mode, without downloading anything.

    The configs of the base models come from this machine, or else from the shapes in `visllama.plan.published`.

    Args:
        parts: Class names and arguments of the model's parts, as `visllama.model.weights.Parts` describes them.
        trainable: Names of the parts that learn, out of "vision_encoder", "connector", "markers", "language_model" and
            "adapter" (LoRA).
        plugins: Names of the user's importable packages, which may define classes of parts. They are imported.
        models: The folder of downloaded base models (`paths.models`); None for none.

    Returns:
        The model, of which shapes can be read. It has no weights, its tokenizer may be a stand-in, and the folders that
        its base models name no longer exist.

    Raises:
        ConfigError: If a part cannot be built, or if a base model's shapes are neither on this machine nor known.
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
