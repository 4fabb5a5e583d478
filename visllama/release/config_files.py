"""Make the content of a config.json that transformers 4 and 5 read alike."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


def portable_config(config: PreTrainedConfig, dtype: str) -> dict[str, Any]:
    """Return the content of a config.json, with values under the names of both transformers 5 and transformers 4.

    transformers 4, and engines built on it, read `rope_theta`, `rope_scaling` and `torch_dtype`, and fall back to
    defaults if these are missing. transformers 5 writes `rope_parameters` and `dtype`. Names that begin with `_` are
    left out. The config is not changed.

    Args:
        config: The config of a language model or a vision encoder.
        dtype: Name of the dtype that the tensors are written in, for example "bfloat16".
    """
    # Private values name the folder and the release that the config came from.
    values = {}
    for name, value in config.to_dict().items():
        if not name.startswith("_"):
            values[name] = value
    values |= {"dtype": dtype, "torch_dtype": dtype}

    # A config without rotary positions, such as CLIP's, has no such value.
    rope = values.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        values["rope_theta"] = rope["rope_theta"]
        # transformers 4 has no scaling of the kind "default", but None.
        values["rope_scaling"] = None
        if rope.get("rope_type", "default") != "default":
            values["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    return values
