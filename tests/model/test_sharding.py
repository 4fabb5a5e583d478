"""Recomputed blocks, and what is refused; sharding itself is held by tests/test_distributed.py, on ranks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from tests.support.tiny import tiny_parts
from visllama.errors import ConfigError
from visllama.model.sharding import blocks, cast_weights, compute_again, shard
from visllama.model.weights import build_model
from visllama.text.tokens import image_span

LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2, "target_modules": "all-linear"}


def make():
    torch.manual_seed(0)
    model = build_model(tiny_parts() | {"lora": LORA}, ("connector", "markers", "adapter")).load_base_weights().train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model) -> list[torch.Tensor]:
    size = model.vision_encoder.transform.size_px
    ids = torch.tensor([[1, *image_span(10), 5, 6, 7]])
    torch.manual_seed(3)  # dropout
    model(ids, torch.zeros(1, 3, size, size, dtype=torch.uint8), labels=ids.clamp(min=0)).loss_sum.backward()
    return [p.grad for p in model.parameters() if p.requires_grad]


def saved_bytes(model) -> int:
    sizes = {}

    def keep(tensor):
        if not isinstance(tensor, nn.Parameter):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        gradients(model)
    return sum(sizes.values())


def test_what_is_computed_again_is_the_same_to_the_bit_and_keeps_less():
    plain, again = make(), make()
    compute_again(again)
    found, expected = gradients(again), gradients(plain)
    assert len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for model in (plain, again):
        model.zero_grad()
    assert saved_bytes(again) < 0.6 * saved_bytes(plain)


def test_generation_does_not_compute_again():
    model = make().eval()
    compute_again(model)
    size = model.vision_encoder.transform.size_px
    ids = torch.tensor([[1, *image_span(10)]])
    out = model.generate(
        ids, torch.zeros(1, 3, size, size, dtype=torch.uint8), torch.ones_like(ids), max_new_tokens=3, do_sample=False
    )
    assert out.shape[1] <= 3


def test_blocks_are_those_that_transformers_names():
    model = make()
    assert {type(b).__name__ for b in blocks(model.language_model)} == {"LlamaDecoderLayer"}
    assert "CLIPEncoderLayer" in {type(b).__name__ for b in blocks(model.vision_encoder)}


def test_a_language_model_without_names_is_refused():
    model = make()
    model.language_model = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="trainer/strategy=fsdp: Linear names no _no_split_modules"):
        shard(model, DeviceMesh.__new__(DeviceMesh), torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("trainable", "lora"),
    [
        (("connector", "markers"), {}),
        (("connector", "markers", "adapter"), {"lora": LORA}),
        (("connector", "markers", "language_model"), {}),
        (("connector", "markers", "vision_encoder"), {}),
    ],
    ids=["pretrain", "adapter", "language_model", "vision_encoder"],
)
def test_cast_after_loading_is_as_loaded_in_the_dtype(trainable, lora, dtype):
    """Frozen weights are in the dtype, and what trains is fp32 at least."""

    def load(**how):
        torch.manual_seed(0)
        return build_model(tiny_parts() | lora, trainable).load_base_weights(dtype, **how)

    expected, found = load(), load(as_stored=True)
    cast_weights(found, dtype)
    for (name, a), b in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), name
        is_frozen = not any(name.startswith(part) for part in trainable) and ".lora_" not in name
        assert a.dtype == (dtype if is_frozen else torch.promote_types(dtype, torch.float32)), name
    for (name, a), b in zip(found.named_buffers(), expected.buffers(), strict=True):
        assert a.dtype == b.dtype, name
