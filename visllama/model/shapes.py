"""Sizes of a model, read off a model without weights, from which its memory and its arithmetic are computed."""

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
    """The sizes of one parameter of the model; a *unit* is a group of parameters that FSDP gathers together.

    Attributes:
        part: Part of the parameter: "vision_encoder", "connector", "markers", "language_model" or "adapter" (LoRA).
        unit: Unit of the parameter: a block ("language_model 0", "vision_encoder 3"), "connector", or "root" for all
            that lies in none of these.
        shape: Size in each dimension.
        is_trained: Whether it gets gradients.
        is_cast: Whether it trains and autocast makes a half-precision copy of it for matrix products.
    """

    part: str
    unit: str
    shape: tuple[int, ...]
    is_trained: bool
    is_cast: bool

    @property
    def is_behind_first_block(self) -> bool:
        """Whether the backward pass reaches this parameter before the language model's first block."""
        if self.unit == "root":
            # The head is cast and has its gradient at once; the embeddings are not cast and get theirs at the very end.
            return self.part == "language_model" and self.is_cast
        return self.unit.startswith("language_model") and self.unit != "language_model 0"

    def numel(self, num_shards: int = 1) -> int:
        """Return the number of elements that a rank holds, which is all of them unless the tensor is sharded.

        Args:
            num_shards: Number of ranks that FSDP cuts the first dimension over. The result is that of the first rank,
                which holds most where the division leaves a rest.
        """
        first, *rest = self.shape or (1,)

        # Rounded up: the first ranks hold a row more where the division leaves a rest.
        count = -(-first // num_shards)
        for size in rest:
            count *= size
        return count


class Adapter(NamedTuple):
    """The sizes of LoRA's adapter at one linear layer.

    Attributes:
        shares_input: A name for the layer's input; layers that read the same tensor have the same name here.
        in_dim: Width of the layer's input.
        rank: Rank of the adapter's two matrices.
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
        key_dim: Width of the keys of all heads together, which is also that of the values.
        ffn_dim: Width of the MLP's inner layer.
        ffn_kept: Number of vectors of width `ffn_dim` that a token keeps for the backward pass: three for a gated MLP
            and for CLIP's, two for one with a plain GELU.
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
    """All sizes of a model that its memory and its arithmetic are computed from; `read_shapes` makes it.

    Attributes:
        parameters: All parameters of the model, without buffers.
        adapters: LoRA's adapters, one for each layer; empty without LoRA.
        language: Sizes of the language model.
        vision: Sizes of the vision encoder; all zeros if it has no config of transformers, as one of the user's own.
        connector: Memory and arithmetic of the connector.
        num_positions: Number of patches an image in the vision encoder, plus its class token if it has one.
        vocabulary: Number of ids in the language model's vocabulary, which is the number of logits a token.
        num_image_tokens: Number of vectors that the connector makes of an image (K).
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
        """Return the number of elements of the model's parameters, or of some of them, that a rank holds.

        Args:
            parts: Names of the parts to count ("connector", "adapter", ...); all parts if none is named. An unknown
                name counts nothing.
            trained: True counts parameters that train, False frozen ones, None both.
            num_shards: Number of ranks that FSDP cuts each tensor over; 1 if a rank holds all.
        """
        count = 0
        for parameter in self.parameters:
            is_asked_for = not parts or parameter.part in parts
            if is_asked_for and trained in (None, parameter.is_trained):
                count += parameter.numel(num_shards)
        return count

    def is_trained(self, part: str) -> bool:
        """Return whether at least one parameter of a part trains.

        Args:
            part: "vision_encoder", "connector", "markers", "language_model" or "adapter" (LoRA); for any other name the
                result is False.
        """
        return any(p.part == part and p.is_trained for p in self.parameters)


def read_shapes(model: VisLlama) -> Shapes:
    """Read the sizes of a model off its configs and its parameters' shapes; no weight is read.

    Args:
        model: The model, on any device, also the meta device. It must not be sharded yet. Its `requires_grad` flags say
            what trains.
    """
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
    """Return the name of the FSDP unit that `sharding.shard` puts each parameter in, by the parameter's `id()`.

    A parameter that is not a key here lies with the root.
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
    """Return the sizes of an adapter.

    Args:
        name: Full name of the layer beside it.
        module: PEFT's module for that layer.
    """
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
    """Return the sizes in a config of transformers; all zeros for an object that is no such config.

    Args:
        config: The config of a language model or a vision encoder, or None.
        is_language: Whether it is a language model's, whose MLP is gated.
    """
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
