"""Sizes of a model, from which its memory and its arithmetic are counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from torch import nn

from visllama.model.counted import Connector, count_connector
from visllama.model.language_model import input_embeddings
from visllama.model.lora import adapters
from visllama.model.sharding import blocks
from visllama.model.visllama import VisLlama, part_of


class Parameter(NamedTuple):
    """A tensor of the model.

    Attributes:
        part: Name of the part that it belongs to: a role, `markers` or `adapter`.
        unit: Name of the unit that it is sharded with: a block, the connector, or the root.
        shape: Its size in each dimension.
        is_trained: Whether it gets gradients.
        is_cast: Whether it trains and is multiplied as a copy in half precision under autocast.
    """

    part: str
    unit: str
    shape: tuple[int, ...]
    is_trained: bool
    is_cast: bool

    @property
    def is_behind_first_block(self) -> bool:
        """Return whether its gradient exists before that of the language model's first block."""
        if self.unit == "root":
            # The head is cast and has its gradient at once; the embeddings are not cast and get theirs at the very end.
            return self.part == "language_model" and self.is_cast
        return self.unit.startswith("language_model") and self.unit != "language_model 0"

    def numel(self, num_shards: int = 1) -> int:
        """Return how many numbers a rank holds at most; FSDP cuts the first dimension into `num_shards` parts."""
        first, *rest = self.shape or (1,)

        # Rounded up: the first ranks hold a row more where the division leaves a rest.
        count = -(-first // num_shards)
        for size in rest:
            count *= size
        return count


class Adapter(NamedTuple):
    """LoRA at one linear layer.

    Attributes:
        shares_input: Name of the layer's input; layers that read the same tensor have the same name here.
        in_dim: Width of the input.
        rank: Rank of the two matrices.
        has_dropout: Whether dropout makes a copy of the input for this adapter.
        scaled_dim: Width of the output that DoRA scales; 0 without DoRA.
    """

    shares_input: str
    in_dim: int
    rank: int
    has_dropout: bool
    scaled_dim: int


class Transformer(NamedTuple):
    """Sizes of a transformer.

    Attributes:
        num_layers: Number of blocks.
        num_heads: Number of attention heads.
        width: Width of the hidden states.
        query_dim: Width of the queries of all heads together.
        key_dim: Width of the keys of all heads together.
        ffn_dim: Width inside the MLP.
        ffn_kept: Number of vectors as wide as the MLP that a token keeps: three for a gated MLP, two for a plain one.
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
    """All sizes that a plan is computed from.

    Attributes:
        parameters: The tensors of the model.
        adapters: LoRA's layers; empty without LoRA.
        language: The language model.
        vision: The vision encoder; all zeros where its class is the user's own.
        connector: What the connector keeps and computes.
        num_positions: Positions of an image in the vision encoder, its class token included.
        vocabulary: Number of logits a token.
        num_image_tokens: Number of vectors an image (K).
        size_px: Side of an image in pixels.
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
        """Return how many numbers of the model a rank holds.

        Args:
            parts: Names of the parts to count; all parts if none is named.
            trained: Whether to count trained or frozen tensors; None counts both.
            num_shards: Number of ranks that a tensor is cut over.
        """
        count = 0
        for parameter in self.parameters:
            is_asked_for = not parts or parameter.part in parts
            if is_asked_for and trained in (None, parameter.is_trained):
                count += parameter.numel(num_shards)
        return count

    def is_trained(self, part: str) -> bool:
        """Return whether a part has a tensor that trains."""
        return any(p.part == part and p.is_trained for p in self.parameters)


def read_shapes(model: VisLlama) -> Shapes:
    """Return the sizes of a model, which may be on the meta device and must not be sharded yet."""
    encoder = model.vision_encoder
    encoder_config = getattr(getattr(encoder, "model", None), "config", None)
    language_config = model.language_model.config.get_text_config()

    if model.connector.consumes == "patch":
        feature_shape = (encoder.num_patches, encoder.patch_dim)
    else:
        feature_shape = (encoder.pooled_dim,)

    # An encoder of the user's own need not say how many class tokens stand before its patches.
    num_class_tokens = cast(int, getattr(encoder, "num_class_tokens", 0))
    return Shapes(
        parameters=_parameters(model),
        adapters=[_adapter(name, module) for name, module in adapters(model.language_model)],
        language=_transformer(language_config, is_language=True),
        vision=_transformer(encoder_config, is_language=False),
        connector=count_connector(model.connector, feature_shape),
        num_positions=encoder.num_patches + num_class_tokens,
        vocabulary=language_config.vocab_size,
        num_image_tokens=model.num_image_tokens,
        size_px=encoder.transform.size_px,
    )


def _parameters(model: VisLlama) -> list[Parameter]:
    unit_of = _units(model)
    embeddings = input_embeddings(model.language_model).weight

    parameters = []
    for name, tensor in model.named_parameters():
        # Autocast copies the matrices that are multiplied: no vector, and neither of the two tables that are looked up.
        is_multiplied = tensor.ndim > 1 and tensor is not embeddings and name != "markers"
        parameters.append(
            Parameter(
                part=part_of(name),
                unit=unit_of.get(id(tensor), "root"),
                shape=tuple(tensor.shape),
                is_trained=tensor.requires_grad,
                is_cast=tensor.requires_grad and is_multiplied,
            )
        )
    return parameters


def _units(model: VisLlama) -> dict[int, str]:
    """Return the name of the unit that `shard` puts each tensor in, by the tensor's id.

    A tensor that is not here lies with the root.
    """
    unit_of = {id(parameter): "connector" for parameter in model.connector.parameters()}
    for role, part in (("language_model", model.language_model), ("vision_encoder", model.vision_encoder)):
        for number, block in enumerate(blocks(part) or [part]):
            for parameter in block.parameters():
                unit_of[id(parameter)] = f"{role} {number}"

    # A language model that names no blocks is one unit above, but its embeddings and its head lie with the root.
    embeddings = input_embeddings(model.language_model)
    head = model.language_model.get_output_embeddings()
    unit_of[id(embeddings.weight)] = "root"
    unit_of[id(getattr(head, "weight", None))] = "root"
    return unit_of


def _adapter(name: str, module: Any) -> Adapter:
    """Return the sizes of an adapter, by the full name of the layer that it stands beside."""
    # There is one adapter a layer: PEFT keeps them by name.
    (first_matrix,) = module.lora_A.values()
    (dropout,) = module.lora_dropout.values()

    # Queries, keys and values read one tensor, and so do the gate and the up matrix of an MLP. The output matrices of
    # attention and of the MLP have inputs of their own.
    parent, _, leaf = name.rpartition(".")
    own_input = leaf if leaf in ("o_proj", "down_proj") else ""

    uses_dora = any(module.use_dora.values())
    return Adapter(
        shares_input=f"{parent} {own_input}",
        in_dim=module.in_features,
        rank=len(first_matrix.weight),
        has_dropout=not isinstance(dropout, nn.Identity),
        scaled_dim=module.out_features if uses_dora else 0,
    )


def _transformer(config: Any, is_language: bool) -> Transformer:
    """Return the sizes that a config of transformers holds, whatever the architecture calls them."""
    # An encoder of the user's own has no such config, and no more is known about it.
    if not hasattr(config, "num_hidden_layers"):
        return Transformer(0, 0, 0, 0, 0, 0, 0)

    width = config.hidden_size
    num_heads = config.num_attention_heads
    num_key_heads = getattr(config, "num_key_value_heads", None) or num_heads
    head_dim = getattr(config, "head_dim", None) or width // num_heads

    # DINOv2's config holds the MLP's width as a multiple of the hidden states'.
    ffn_dim = getattr(config, "intermediate_size", None) or int(width * getattr(config, "mlp_ratio", 4))

    # An encoder's MLP with a GELU keeps the activation's input and output. A gated MLP keeps the gate before and after
    # its activation, and what it multiplies; CLIP's quick GELU is a product as well, and keeps three too.
    activation = getattr(config, "hidden_act", "")
    is_plain_gelu = not is_language and activation in ("gelu", "gelu_pytorch_tanh")
    return Transformer(
        num_layers=config.num_hidden_layers,
        num_heads=num_heads,
        width=width,
        query_dim=num_heads * head_dim,
        key_dim=num_key_heads * head_dim,
        ffn_dim=ffn_dim,
        ffn_kept=2 if is_plain_gelu else 3,
    )
