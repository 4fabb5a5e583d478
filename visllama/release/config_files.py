"""A model's config.json that every release of transformers reads the same."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


def portable_config(config: PreTrainedConfig, dtype: str) -> dict[str, Any]:
    """Return a config's values, under the names of transformers 4 too.

    transformers 4, and engines built on it, read `rope_theta`, `rope_scaling` and `torch_dtype`, and fall back to
    defaults where these are missing. transformers 5 writes `rope_parameters` and `dtype`.

    Args:
        config: The config of a language model or an encoder.
        dtype: Name of the dtype that the tensors are written in, for example "bfloat16".
    """
    values = config.to_dict()
    for private in [name for name in values if name.startswith("_")]:
        del values[private]
    values |= {"dtype": dtype, "torch_dtype": dtype}

    rope = values.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        values["rope_theta"] = rope["rope_theta"]
        scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
        values["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    return values
