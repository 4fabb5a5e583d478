"""What a format cannot express is said, with the format that can."""

from __future__ import annotations

import pytest

from tests.support.families import save_encoder
from tests.support.tiny import CONNECTORS, TINY, tiny_parts
from visllama.config.choices import EXPORT_FORMATS
from visllama.model.export_formats import find_obstacle
from visllama.model.weights import build_model

LORA = {"lora": {"r": 2, "target_modules": ["q_proj"]}}


def formats_of(parts: dict, trainable=("connector", "markers")) -> list[str]:
    model = build_model(parts, trainable)
    return [form for form in EXPORT_FORMATS if find_obstacle(model, form) is None]


@pytest.mark.parametrize("connector", CONNECTORS)
def test_every_connector_leaves_and_one_of_patches_as_llava_too(connector):
    expected = ["hub", "llava", "language_model"] if connector == "patch_mlp" else ["hub", "language_model"]
    assert formats_of(tiny_parts(connector)) == expected


def test_lora_leaves_as_an_adapter_unless_the_language_model_was_trained_too():
    assert "adapter" in formats_of(tiny_parts() | LORA, ("connector", "markers", "adapter"))
    trained = build_model(tiny_parts() | LORA, ("connector", "adapter", "language_model"))
    assert "language_model" in find_obstacle(trained, "adapter")
    assert "format=hub" in find_obstacle(build_model(tiny_parts(), ("connector",)), "adapter")


def test_llava_is_as_wide_as_its_language_model_and_sees_by_clip(tmp_path):
    narrow = tiny_parts() | {
        "connector": {"kind": "PatchMLPConnector", "arguments": {"num_image_tokens": None, "hidden_dim": 64}}
    }
    assert "hidden_dim" in find_obstacle(build_model(narrow, ("connector",)), "llava")
    path = str(save_encoder("siglip", tmp_path / "siglip"))
    siglip = tiny_parts("patch_mlp") | {"vision_encoder": {"kind": "SiglipVisionEncoder", "arguments": {"path": path}}}
    obstacle = find_obstacle(build_model(siglip, ("connector",)), "llava")
    assert "only for CLIP" in obstacle and "format=language_model" in obstacle and TINY["vision_encoder"]["kind"]
