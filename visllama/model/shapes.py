"""The sizes of a model from which its memory and its arithmetic are counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from visllama.model.counted import Connector, count_connector
from visllama.model.lora import adapters
from visllama.model.sharding import blocks
from visllama.model.visllama import VisLlama, part_of


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

    @property
    def is_behind_first_block(self) -> bool:
        """Return whether its gradient is there before the language model's first block has its own."""
        if self.unit == "root":
            return self.part == "language_model" and self.is_cast  # the head; embeddings come first
        return self.unit.startswith("language_model") and self.unit != "language_model 0"

    def numel(self, num_shards: int = 1) -> int:
        """Return the numbers that a rank holds: FSDP cuts the first dimension, rounded up."""
        first, *rest = self.shape or (1,)
        count = -(-first // num_shards)
        for size in rest:
            count *= size
        return count


class Adapter(NamedTuple):
    """LoRA at one linear layer.

    Attributes:
        shares_input: Name of the input that layers beside it have too.
        has_dropout: Whether its input is dropped out, which makes it its own.
        scaled_dim: Of the output that DoRA scales; 0 without.
    """

    shares_input: str
    in_dim: int
    rank: int
    has_dropout: bool
    scaled_dim: int


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


@dataclass(frozen=True)
class Shapes:
    """All that a plan is computed from.

    Attributes:
        num_positions: Of an image in the vision encoder, its class token included.
        vocabulary: Logits a token.
        num_image_tokens: K.
        size_px: Side of an image.
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


def read_shapes(model: VisLlama) -> Shapes:
    """Read off a model what a plan needs; it may be on the meta device, and may not be sharded yet."""
    language = model.language_model.config.get_text_config()
    vision = getattr(getattr(model.vision_encoder, "model", None), "config", None)
    unit_of = {id(p): "connector" for p in model.connector.parameters()}
    for role, part in (("language_model", model.language_model), ("vision_encoder", model.vision_encoder)):
        for number, block in enumerate(blocks(part) or [part]):
            unit_of |= {id(p): f"{role} {number}" for p in block.parameters()}
    embeddings = model.language_model.get_input_embeddings().weight
    head = model.language_model.get_output_embeddings()
    unit_of |= {id(p): "root" for p in (embeddings, getattr(head, "weight", None))}
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
        [_adapter(name, module) for name, module in adapters(model.language_model)],
        _transformer(language, True),
        _transformer(vision, False),
        count_connector(model.connector, feature_dim[model.connector.consumes == "patch"]),
        encoder.num_patches + getattr(encoder, "num_class_tokens", 0),
        language.vocab_size,
        model.num_image_tokens,
        encoder.transform.size_px,
    )


def _adapter(name: str, module: Any) -> Adapter:
    (first,), (dropout,) = module.lora_A.values(), module.lora_dropout.values()
    parent, _, leaf = name.rpartition(".")
    shared = f"{parent} {leaf if leaf in ('o_proj', 'down_proj') else ''}"
    has_dropout = not isinstance(dropout, nn.Identity)
    scaled_dim = module.out_features if any(module.use_dora.values()) else 0
    return Adapter(shared, module.in_features, len(first.weight), has_dropout, scaled_dim)


def _transformer(config: Any, is_language: bool) -> Transformer:
    if not hasattr(config, "num_hidden_layers"):  # an encoder of the user's own, of which no more is known
        return Transformer(0, 0, 0, 0, 0, 0, 0)
    heads, width = config.num_attention_heads, config.hidden_size
    head_dim = getattr(config, "head_dim", None) or width // heads
    ffn = getattr(config, "intermediate_size", None) or int(width * getattr(config, "mlp_ratio", 4))
    keys = getattr(config, "num_key_value_heads", None) or heads
    kept = 2 if getattr(config, "hidden_act", "") in ("gelu", "gelu_pytorch_tanh") and not is_language else 3
    return Transformer(config.num_hidden_layers, heads, width, heads * head_dim, keys * head_dim, ffn, kept)
