"""Write the export format `hub`: visllama's own two files, in which no folder of this machine is named."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from visllama.errors import ConfigError
from visllama.inference.hub import is_repository
from visllama.model.locate import SHIPPED_PREFIX
from visllama.model.weights import BASE_PARTS, DESCRIPTION_FILE, TENSORS_FILE
from visllama.release.tokenizer_files import write_json


def name_bases(description: Mapping, named: Mapping[str, str | None]) -> dict[str, Any]:
    """Return a copy of a description in which each base model has a path that other users can load.

    Args:
        description: The content of `visllama.json`, which is not changed.
        named: Ids on the hub under "vision_encoder" and "language_model". An id replaces the path, and the commit that
            belonged to the path is removed. A missing id or None keeps both.

    Raises:
        ConfigError: If a path without an id is a folder of this machine: neither a hub id nor `visllama:NAME`.
    """
    description = deepcopy(dict(description))
    for part in BASE_PARTS:
        arguments = description["parts"][part]["arguments"]

        # The commit belongs to the path that the id replaces.
        if named.get(part):
            arguments["path"] = named[part]
            arguments.pop("revision", None)

        path = arguments.get("path")
        is_portable = path is None or path.startswith(SHIPPED_PREFIX) or is_repository(path)
        if not is_portable:
            raise ConfigError(
                f"format=hub: the {part} is {path}, a folder of this machine, which nobody else has: give its id on "
                f"the hub, {part}=ORGANISATION/NAME"
            )
    return description


def write_hub(folder: Path, weights: Path, description: Mapping, dtype: torch.dtype) -> None:
    """Write `visllama.safetensors` and `visllama.json` into a folder.

    Args:
        folder: An existing empty folder.
        weights: The run's `weights/` folder, from which the trained tensors are read. Their names and shapes are not
            checked here.
        description: The content of `visllama.json` to write, from `name_bases`.
        dtype: The dtype in which floating-point tensors are written; other tensors keep theirs.
    """
    # Replaced one after the other, so that there are never two whole copies in memory.
    tensors = load_file(weights / TENSORS_FILE)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.to(dtype)

    save_file(tensors, folder / TENSORS_FILE, metadata={"format": "pt"})
    write_json(folder / DESCRIPTION_FILE, description)
