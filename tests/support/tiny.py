"""Tiny models and what is made with them."""

from __future__ import annotations

import torch

from visllama.data.collate import Collator
from visllama.data.datamodule import TrainingData
from visllama.data.order import Order
from visllama.data.samples import SampleMaker
from visllama.text.settings import TextSettings
from visllama.text.templates import TEMPLATES

TEXT = TextSettings(prompt="", max_text_tokens=256, template=TEMPLATES["plain"])
"""What weights say of the texts that a model was trained on."""
TINY = {
    "vision_encoder": {"kind": "CLIPVisionEncoder", "arguments": {"path": "visllama:clip", "feature_layer": -2}},
    "language_model": {"kind": "PretrainedLanguageModel", "arguments": {"path": "visllama:llama"}},
}
CONNECTORS = {
    "mlp": ("MLPConnector", {"num_image_tokens": 10, "hidden_dim": 32}),
    "mlp_published": ("MLPConnector", {"num_image_tokens": 2, "hidden_dim": None}),
    "transformer": (
        "TransformerConnector",
        {"num_image_tokens": 10, "hidden_dim": 32, "num_layers": 2, "num_heads": 2, "num_mapped_tokens": 4},
    ),
    "patch_mlp": ("PatchMLPConnector", {"num_image_tokens": None}),
    "resampler": ("ResamplerConnector", {"num_image_tokens": 10, "hidden_dim": 32, "num_layers": 1, "num_heads": 2}),
}
"""Each connector's class and small arguments, by the name of its YAML."""


def tiny_parts(connector: str = "mlp") -> dict:
    """Describe a tiny model by its connector's YAML."""
    kind, arguments = CONNECTORS[connector]
    return TINY | {"connector": {"kind": kind, "arguments": arguments}}


def maker_of(model, prompt: str = "", max_text_tokens: int = 256) -> SampleMaker:
    return SampleMaker(model.tokenizer, model.vision_encoder.transform, model.num_image_tokens, max_text_tokens, prompt)


def collator_of(model, micro_batch_size: int = 64) -> Collator:
    return Collator(
        model.tokenizer.pad_token_id, model.num_image_tokens, model.vision_encoder.transform.size_px, micro_batch_size
    )


def data_of(
    model, train, val, batch: int, num_steps: int, micro_batch_size: int = 64, seed: int = 1, **more
) -> TrainingData:
    """Make the data of a run; `train` are sources by name, in equal shares, and `val` is one, or by the same names."""
    val = val if isinstance(val, dict) else {next(iter(train)): val}
    maker = maker_of(model)
    order = Order({name: source.shard_items for name, source in train.items()}, dict.fromkeys(train, 1.0), batch, seed)
    made = {"makers": dict.fromkeys(train, maker), "collator": collator_of(model, micro_batch_size)}
    return TrainingData(train, val, **made, order=order, num_steps=num_steps, **({"num_workers": 0} | more))


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference relative to the tensor's norm."""
    return ((a - b).norm() / b.norm()).item()
