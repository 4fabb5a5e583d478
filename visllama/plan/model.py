"""The model of a config as shapes alone."""

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
    """Build a model on the meta device, of base models that need not be there.

    Args:
        parts: As `build_model` takes them.
        trainable: Names of the parts that learn.
        plugins: The user's packages.
        models: Where downloaded base models lie (`paths.models`).

    Raises:
        ConfigError: If a part cannot be made, or the shapes of a base model are not known.
    """
    with TemporaryDirectory() as scratch:
        made = without_downloads(parts, plugins, models, Path(scratch))
        try:
            with torch.device("meta"):
                return build_model(made, trainable, plugins=plugins, models=models).train()
        except ConfigError as error:
            named = str(error)
            for role in set(made) & set(ROLES):
                theirs, ours = (each[role]["arguments"].get("path") for each in (made, parts))
                named = named.replace(theirs, ours) if theirs else named
            raise ConfigError(named) from error
