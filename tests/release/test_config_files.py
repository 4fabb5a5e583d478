"""A config.json says the same to old and new releases of transformers."""

from __future__ import annotations

from transformers import LlamaConfig

from visllama.release.config_files import portable_config


def test_rope_is_named_as_both_releases_read_it():
    """transformers 4 would take 10,000 in silence where it finds `rope_parameters` alone."""
    scaled = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    values = portable_config(LlamaConfig(rope_parameters=scaled), "bfloat16")
    assert values["rope_theta"] == 500000.0 and values["rope_parameters"] == scaled
    assert values["rope_scaling"] == {name: value for name, value in scaled.items() if name != "rope_theta"}
    assert values["torch_dtype"] == values["dtype"] == "bfloat16"
    assert not [name for name in values if name.startswith("_")]

    read_again = LlamaConfig(**values)
    assert read_again.rope_parameters["rope_theta"] == 500000.0 and read_again.rope_parameters["factor"] == 8.0


def test_without_scaling_there_is_none():
    values = portable_config(LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 5e5}), "float32")
    assert values["rope_theta"] == 5e5 and values["rope_scaling"] is None
