"""Floating-point operations that training on one sample takes, computed from the sizes of a model."""

from __future__ import annotations

from typing import NamedTuple

from visllama.console import number
from visllama.model.shapes import Shapes


class Flops(NamedTuple):
    """Floating-point operations of one part of the model for one sample, forward and backward pass together.

    Attributes:
        name: Name of the part for a table: "frozen blocks", "trained blocks", "logits", "attention", "connector" or
            "vision encoder".
        count: The number of operations.
        formula: The computation of `count` as text, for a table.
    """

    name: str
    count: float | int
    formula: str


def flops(shapes: Shapes, tokens: float | int, recomputes: bool, images: float | int = 1) -> list[Flops]:
    """Compute the floating-point operations of training on one sample, part by part, without running the model.

    A weight costs two operations a token in the forward pass, and two again for each gradient that is due: a frozen
    weight passes on the gradient of its input, and one that trains has a gradient of its own too.

    Args:
        shapes: Sizes of the model, as `read_shapes` returns them.
        tokens: Length of the sample in tokens, its image vectors included.
        recomputes: Whether blocks run forward twice (activation checkpointing).
        images: Images of a sample, on average. It multiplies the counts; the formulas are those of one image.

    Returns:
        The parts in this order: blocks of the language model, logits, attention, connector, vision encoder. Parts
        without operations are left out.
    """
    parts = [
        *_block_flops(shapes, tokens, recomputes),
        _logit_flops(shapes, tokens),
        _attention_flops(shapes, tokens, recomputes),
        _connector_flops(shapes, images),
        _vision_flops(shapes, images),
    ]
    return [part for part in parts if part.count]


def _block_flops(shapes: Shapes, tokens: float | int, recomputes: bool) -> list[Flops]:
    """Return the operations of the matrices in the language model's blocks, the frozen and the trained ones apart."""
    language = shapes.language
    frozen = _weights(shapes, "language_model", is_trained=False)
    trained = _weights(shapes, "language_model", is_trained=True)
    trained += _weights(shapes, "adapter", is_trained=True)

    # A frozen weight is passed once forward and once backward, and once more forward where activations are recomputed.
    passes = 3 if recomputes else 2

    # Recomputation stops at the last tensor that the backward pass needs. The MLP's last matrix is computed again only
    # where it trains or an adapter beside it reads its input.
    skipped = 0
    has_adapter_at_last = any(adapter.in_dim == language.ffn_dim for adapter in shapes.adapters)
    if recomputes and frozen > 0 and not has_adapter_at_last:
        skipped = language.num_layers * language.width * language.ffn_dim

    factor = f"{2 * passes} x {number(frozen)}"
    if skipped:
        factor = f"({factor} - 2 x {number(skipped)})"
    count = 2 * (passes * frozen - skipped) * tokens
    parts = [Flops("frozen blocks", count, f"{factor} x {tokens:,.4g}")]

    if trained:
        per_weight = 2 * (passes + 1)
        formula = f"{per_weight} x {number(trained)} x {tokens:,.4g}"
        parts.append(Flops("trained blocks", per_weight * trained * tokens, formula))
    return parts


def _logit_flops(shapes: Shapes, tokens: float | int) -> Flops:
    head = shapes.language.width * shapes.vocabulary
    passes = 3 if shapes.is_trained("language_model") else 2
    formula = f"{2 * passes} x {number(head)} x {tokens:,.4g}"
    return Flops("logits", 2 * passes * head * tokens, formula)


def _attention_flops(shapes: Shapes, tokens: float | int, recomputes: bool) -> Flops:
    """Return the operations of the language model's attention: scores, and values weighted by them."""
    language = shapes.language
    forward = 4 * language.num_layers * tokens**2 * language.query_dim

    # Both products have two inputs, so the backward pass is twice the forward pass.
    passes = 4 if recomputes else 3
    formula = f"{passes} x 4 x {language.num_layers} x {tokens:,.4g}^2 x {number(language.query_dim)}"
    return Flops("attention", passes * forward, formula)


def _connector_flops(shapes: Shapes, images: float | int) -> Flops:
    forward = shapes.connector.flops
    return Flops("connector", 3 * images * forward, f"3 x {number(forward)}, counted")


def _vision_flops(shapes: Shapes, images: float | int) -> Flops:
    """Return the operations of the vision encoder: its forward pass if it is frozen, three times that if it trains."""
    vision = shapes.vision
    positions = shapes.num_positions
    weights = _weights(shapes, "vision_encoder", is_trained=False)
    weights += _weights(shapes, "vision_encoder", is_trained=True)

    forward = 2 * weights * positions + 4 * vision.num_layers * positions**2 * vision.width
    passes = 3 if shapes.is_trained("vision_encoder") else 1
    formula = f"{passes} x (2 x {number(weights)} x {positions} + attention)"
    return Flops("vision encoder", passes * images * forward, formula)


def _weights(shapes: Shapes, part: str, is_trained: bool) -> int:
    """Return how many numbers the matrices in a part's blocks hold: its trained or its frozen ones."""
    count = 0
    for parameter in shapes.parameters:
        is_in_block = parameter.unit not in ("root", "connector")
        is_matrix = len(parameter.shape) > 1
        if parameter.part == part and parameter.is_trained == is_trained and is_in_block and is_matrix:
            count += parameter.numel()
    return count
