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

    For each token, a weight costs two operations in the forward pass and two in the backward pass for the gradient of
    its input; a weight that trains costs two more for its own gradient. A frozen vision encoder only runs forward.

    Args:
        shapes: Sizes of the model, as `read_shapes` returns them.
        tokens: Length of the sample in tokens, its image vectors included.
        recomputes: Whether the language model's blocks run forward a second time, in the backward pass (activation
            checkpointing).
        images: Mean number of images in a sample. It multiplies the counts of connector and vision encoder, whose
            formulas are for one image.

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
    adapter_inputs = {adapter.in_dim for adapter in shapes.adapters}
    has_adapter_at_last = language.ffn_dim in adapter_inputs
    if recomputes and frozen > 0 and not has_adapter_at_last:
        skipped = language.num_layers * language.width * language.ffn_dim

    per_weight = 2 * passes
    factor = f"{per_weight} x {number(frozen)}"
    if skipped:
        factor = f"({factor} - 2 x {number(skipped)})"
    per_token = per_weight * frozen - 2 * skipped
    formula = f"{factor} x {_short(tokens)}"
    parts = [Flops("frozen blocks", per_token * tokens, formula)]

    # A trained weight has a gradient of its own besides.
    if trained:
        per_weight += 2
        formula = f"{per_weight} x {number(trained)} x {_short(tokens)}"
        parts.append(Flops("trained blocks", per_weight * trained * tokens, formula))
    return parts


def _logit_flops(shapes: Shapes, tokens: float | int) -> Flops:
    """Return the operations of the head, the matrix that makes logits of the last hidden states."""
    head = shapes.language.width * shapes.vocabulary
    per_weight = 6 if shapes.is_trained("language_model") else 4
    formula = f"{per_weight} x {number(head)} x {_short(tokens)}"
    return Flops("logits", per_weight * head * tokens, formula)


def _attention_flops(shapes: Shapes, tokens: float | int, recomputes: bool) -> Flops:
    """Return the operations of the language model's attention: scores, and values weighted by them."""
    language = shapes.language
    num_layers = language.num_layers
    width = language.query_dim
    forward = 4 * num_layers * tokens**2 * width

    # Both products have two inputs, so the backward pass is twice the forward pass.
    passes = 4 if recomputes else 3
    formula = f"{passes} x 4 x {num_layers} x {_short(tokens)}^2 x {number(width)}"
    return Flops("attention", passes * forward, formula)


def _connector_flops(shapes: Shapes, images: float | int) -> Flops:
    """Return the operations of the connector, which always trains: three times its counted forward pass."""
    forward = shapes.connector.flops
    formula = f"3 x {number(forward)}, counted"
    return Flops("connector", 3 * images * forward, formula)


def _vision_flops(shapes: Shapes, images: float | int) -> Flops:
    """Return the operations of the vision encoder: its forward pass if it is frozen, three times that if it trains."""
    vision = shapes.vision
    positions = shapes.num_positions
    weights = _weights(shapes, "vision_encoder", is_trained=False)
    weights += _weights(shapes, "vision_encoder", is_trained=True)

    products = 2 * weights * positions
    attention = 4 * vision.num_layers * positions**2 * vision.width
    forward = products + attention

    passes = 3 if shapes.is_trained("vision_encoder") else 1
    formula = f"{passes} x (2 x {number(weights)} x {positions} + attention)"
    return Flops("vision encoder", passes * images * forward, formula)


def _weights(shapes: Shapes, part: str, is_trained: bool) -> int:
    """Return how many numbers the matrices in a part's blocks hold: its trained or its frozen ones."""
    count = 0
    for parameter in shapes.parameters:
        is_asked_for = parameter.part == part and parameter.is_trained == is_trained
        is_in_block = parameter.unit not in ("root", "connector")
        is_matrix = len(parameter.shape) > 1
        if is_asked_for and is_in_block and is_matrix:
            count += parameter.numel()
    return count


def _short(tokens: float | int) -> str:
    """Return a number of tokens as text for a formula, with four digits at most."""
    return f"{tokens:,.4g}"
