"""The model of a config as shapes alone, and what is counted on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from visllama.config import ROLES, ConfigError
from visllama.model.language_model import PretrainedLanguageModel
from visllama.model.lora import adapters
from visllama.model.sharding import blocks
from visllama.model.visllama import VisLlama, part_of
from visllama.plan.shapes import config_folder, with_processor
from visllama.plugins import part_class


class WithoutTokenizer(PretrainedLanguageModel):
    """A language model's shapes; its tokenizer need not be there."""

    def _read_tokenizer(self) -> None:
        return None


def build_shapes(
    parts: Mapping[str, Mapping], trainable: Sequence[str], plugins: Sequence[str] = (), models: Path | str | None = None
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
    classes = {role: part_class(role, parts[role]["kind"], plugins) for role in ROLES}
    arguments = {role: dict(parts[role]["arguments"]) for role in ROLES}
    with TemporaryDirectory() as scratch, torch.device("meta"):
        for role in ("vision_encoder", "language_model"):
            if "path" in arguments[role]:
                empty, path = Path(scratch) / role, arguments[role]["path"]
                empty.mkdir()
                try:
                    folder = config_folder(arguments[role], models, empty)
                except ConfigError as error:
                    raise ConfigError(f"model.{role}.{error}") from error
                folder = with_processor(folder, classes[role], path, empty) if role == "vision_encoder" else folder
                arguments[role] |= {"path": str(folder)} | ({"revision": None} if "revision" in arguments[role] else {})
        if classes["language_model"] is PretrainedLanguageModel:
            classes["language_model"] = WithoutTokenizer
        vision_encoder = classes["vision_encoder"](**arguments["vision_encoder"])
        language_model = classes["language_model"](**arguments["language_model"])
        if arguments["connector"].get("num_image_tokens", 0) is None:
            arguments["connector"]["num_image_tokens"] = vision_encoder.num_patches
        connector = partial(classes["connector"], **arguments["connector"])
        return VisLlama(vision_encoder, connector, language_model, trainable, parts.get("lora")).train()


class Parameter(NamedTuple):
    """A tensor of the model.

    Attributes:
        part: Which it belongs to: a role, `markers` or `adapter`.
        unit: Which it is sharded with: a block, the connector, or the root.
        is_cast: Whether a trained one is multiplied in half precision, as a copy.
    """

    part: str
    unit: str
    shape: tuple[int, ...]
    is_trained: bool
    is_cast: bool

    def numel(self, num_shards: int = 1) -> int:
        """Give the numbers that a rank holds: FSDP cuts the first dimension, rounded up."""
        first, *rest = self.shape or (1,)
        count = -(-first // num_shards)
        for size in rest:
            count *= size
        return count


class Adapter(NamedTuple):
    """LoRA at one linear layer.

    Attributes:
        unit: The block that it is in.
        shares_input: Name of the input that layers beside it have too.
        has_dropout: Whether its input is dropped out, which makes it its own.
    """

    unit: str
    shares_input: str
    in_dim: int
    rank: int
    has_dropout: bool


class Transformer(NamedTuple):
    """Sizes of one.

    Attributes:
        query_dim, key_dim: Of all heads together.
        ffn_kept: How many times the MLP's width a token keeps: a gate and what it multiplies make three.
    """

    num_layers: int
    num_heads: int
    width: int
    query_dim: int
    key_dim: int
    ffn_dim: int
    ffn_kept: int


class Connector(NamedTuple):
    """What the connector does with one image.

    Attributes:
        kept_bytes: Kept for the backward pass, in full and in half precision (beside fp32 weights).
        flops: Of the forward pass.
    """

    kept_bytes: dict[bool, int]
    flops: int


@dataclass(frozen=True)
class Shapes:
    """All that a plan is computed from.

    Attributes:
        num_positions: Of an image in the vision encoder, its class token included.
        vocabulary: Logits a token.
        num_image_tokens: K.
        size_px: Side of an image.
        max_positions: Of the language model.
    """

    parameters: list[Parameter]
    adapters: list[Adapter]
    language: Transformer
    vision: Transformer
    connector: Connector
    num_positions: int
    vocabulary: int
    num_image_tokens: int
    size_px: int

    def numel(self, *parts: str, trained: bool | None = None, num_shards: int = 1) -> int:
        """Count the numbers that a rank holds of parts, of all if none is named."""
        return sum(
            p.numel(num_shards)
            for p in self.parameters
            if (not parts or p.part in parts) and trained in (None, p.is_trained)
        )

    def is_trained(self, part: str) -> bool:
        return any(p.part == part and p.is_trained for p in self.parameters)


def measure(model: VisLlama) -> Shapes:
    """Read off a model on the meta device what a plan needs."""
    language = model.language_model.config.get_text_config()
    vision = getattr(getattr(model.vision_encoder, "model", None), "config", None)
    unit_of = {id(p): "connector" for p in model.connector.parameters()}
    for role, part in (("language_model", model.language_model), ("vision_encoder", model.vision_encoder)):
        for number, block in enumerate(blocks(part)):
            unit_of |= {id(p): f"{role} {number}" for p in block.parameters()}
    embeddings = model.language_model.get_input_embeddings().weight
    parameters = [
        Parameter(
            part_of(name),
            unit_of.get(id(p), "root"),
            tuple(p.shape),
            p.requires_grad,
            p.requires_grad and p.ndim > 1 and p is not embeddings and name != "markers",
        )
        for name, p in model.named_parameters()
    ]
    encoder = model.vision_encoder
    feature_dim = (encoder.pooled_dim,), (encoder.num_patches, encoder.patch_dim)
    return Shapes(
        parameters,
        [_adapter(name, module, unit_of) for name, module in adapters(model.language_model)],
        _transformer(language, True),
        _transformer(vision, False),
        _connector(model.connector, feature_dim[model.connector.consumes == "patch"]),
        encoder.num_patches + getattr(encoder, "num_class_tokens", 0),
        language.vocab_size,
        model.num_image_tokens,
        encoder.transform.size_px,
    )


def _adapter(name: str, module: Any, unit_of: Mapping[int, str]) -> Adapter:
    (first,), (dropout,) = module.lora_A.values(), module.lora_dropout.values()
    parent, _, leaf = name.rpartition(".")
    shared = f"{parent} {leaf if leaf in ('o_proj', 'down_proj') else ''}"
    return Adapter(
        unit_of[id(first.weight)], shared, module.in_features, len(first.weight), not isinstance(dropout, nn.Identity)
    )


def _transformer(config: Any, is_language: bool) -> Transformer:
    if config is None:  # an encoder of the user's own, of which nothing is known
        return Transformer(0, 0, 0, 0, 0, 0, 0)
    heads, width = config.num_attention_heads, config.hidden_size
    head_dim = getattr(config, "head_dim", None) or width // heads
    ffn = getattr(config, "intermediate_size", None) or int(width * getattr(config, "mlp_ratio", 4))
    keys = getattr(config, "num_key_value_heads", None) or heads
    kept = 2 if getattr(config, "hidden_act", "") in ("gelu", "gelu_pytorch_tanh") and not is_language else 3
    return Transformer(config.num_hidden_layers, heads, width, heads * head_dim, keys * head_dim, ffn, kept)


def _connector(connector: nn.Module, shape: tuple[int, ...]) -> Connector:
    """Run it on two images and on three that hold no numbers: the difference is what one needs."""
    found = {}
    for mixed in (False, True):
        (two, flops), (three, more) = (_run(connector, (n, *shape), mixed) for n in (2, 3))
        found[mixed] = three - two
    return Connector(found, more - flops)


def _run(connector: nn.Module, shape: tuple[int, ...], mixed: bool) -> tuple[int, int]:
    """Give the bytes that a forward pass keeps beside the weights, and its floating-point operations."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    # Shapes that are said to lie on the CPU: autocast knows no meta device.
    with FakeTensorMode():
        named = {name: nn.Parameter(torch.empty(p.shape)) for name, p in connector.named_parameters()}
        named |= {name: torch.empty(b.shape, dtype=b.dtype) for name, b in connector.named_buffers()}
        features = torch.empty(shape)
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed), hooks, FlopCounterMode(display=False) as counted:
            functional_call(connector, named, (features,))
        own = {tensor.untyped_storage()._cdata for tensor in named.values()}
        total = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
    return total, counted.get_total_flops()
