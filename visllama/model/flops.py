"""The arithmetic of a sample, counted from the sizes of a model."""

from __future__ import annotations

from typing import NamedTuple

from visllama.console import number
from visllama.model.shapes import Shapes


class Flops(NamedTuple):
    """Floating-point operations of a sample, forward and backward, of one part."""

    name: str
    count: float | int
    formula: str


def flops(shapes: Shapes, tokens: float | int, recomputes: bool, images: float | int = 1) -> list[Flops]:
    """Count a sample's arithmetic: two operations a weight a token, and again for each gradient that is due.

    A frozen weight has a forward pass and gives the gradient of its input; one that trains has its own gradient too.

    Args:
        shapes: Of the model.
        tokens: Of a sample, image span included.
        recomputes: Whether blocks run forward twice.
        images: Images of a sample, on average; the formulas are those of one image.
    """
    language, vision = shapes.language, shapes.vision
    frozen, trained = (_weights(shapes, "language_model", is_trained) for is_trained in (False, True))
    trained += _weights(shapes, "adapter", True)
    passes = 2 + recomputes
    # What is computed again ends at the last thing that is needed: a frozen MLP's last matrix is not.
    ends_before = recomputes and not any(adapter.in_dim == language.ffn_dim for adapter in shapes.adapters)
    last = language.num_layers * language.width * language.ffn_dim * (ends_before and frozen > 0)
    head = language.width * shapes.vocabulary
    head_passes = 2 + shapes.is_trained("language_model")
    attention = 4 * language.num_layers * tokens**2 * language.query_dim
    formula = f"({2 * passes} x {number(frozen)} - 2 x {number(last)}) x {tokens:,.4g}"
    formula = formula if last else f"{2 * passes} x {number(frozen)} x {tokens:,.4g}"
    found = [Flops("frozen blocks", 2 * (passes * frozen - last) * tokens, formula)]
    if trained:
        each = 2 * (passes + 1)
        found.append(Flops("trained blocks", each * trained * tokens, f"{each} x {number(trained)} x {tokens:,.4g}"))
    found += [
        Flops("logits", 2 * head_passes * head * tokens, f"{2 * head_passes} x {number(head)} x {tokens:,.4g}"),
        Flops(
            "attention",
            (3 + recomputes) * attention,
            f"{3 + recomputes} x 4 x {language.num_layers} x {tokens:,.4g}^2 x {number(language.query_dim)}",
        ),
        Flops("connector", 3 * images * shapes.connector.flops, f"3 x {number(shapes.connector.flops)}, counted"),
    ]
    times = 3 if shapes.is_trained("vision_encoder") else 1
    weights = _weights(shapes, "vision_encoder", False) + _weights(shapes, "vision_encoder", True)
    positions = shapes.num_positions
    once = 2 * weights * positions + 4 * vision.num_layers * positions**2 * vision.width
    formula = f"{times} x (2 x {number(weights)} x {positions} + attention)"
    return [f for f in [*found, Flops("vision encoder", times * images * once, formula)] if f.count]


def _weights(shapes: Shapes, part: str, is_trained: bool) -> int:
    """Count the matrices of a part's blocks."""
    return sum(
        p.numel()
        for p in shapes.parameters
        if p.part == part and p.is_trained == is_trained and p.unit not in ("root", "connector") and len(p.shape) > 1
    )
