"""Weights that are exported: of a tiny model whose connector and adapter matter."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support.tiny import TINY, tiny_parts
from visllama.model.visllama import VisLlama
from visllama.model.weights import build_model, save_weights
from visllama.text.settings import TextSettings
from visllama.text.templates import TEMPLATES

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
VICUNA = TextSettings(prompt="", max_text_tokens=256, template=TEMPLATES["vicuna"])


def save_tiny(
    folder: Path,
    connector: str = "patch_mlp",
    lora: bool = False,
    language_model: Path | None = None,
    vision_encoder: Path | None = None,
    text: TextSettings = VICUNA,
) -> VisLlama:
    """Write weights of a tiny model, and return the model.

    Args:
        folder: Where the weights go.
        connector: Name of its YAML.
        lora: Whether it has an adapter.
        language_model: The folder of another base model.
        vision_encoder: The folder of another encoder.
        text: How the texts of its training were made.
    """
    parts = tiny_parts(connector) | ({"lora": LORA} if lora else {})
    for role, path in (("language_model", language_model), ("vision_encoder", vision_encoder)):
        if path is not None:
            parts[role] = {"kind": TINY[role]["kind"], "arguments": {"path": str(path)}}
    torch.manual_seed(0)
    model = build_model(parts, ("connector", "markers", *(["adapter"] if lora else [])))
    model.load_base_weights()
    for parameter in model.parameters():
        if parameter.requires_grad:  # so that an image and the adapter matter
            parameter.data += 0.05 * torch.randn_like(parameter)
    save_weights(model, parts, text, folder)
    return model.eval()
