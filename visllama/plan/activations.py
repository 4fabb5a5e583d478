"""What forward passes keep for the backward pass, in closed form: bytes a token, an image, a micro-batch."""

from __future__ import annotations

from visllama.plan.job import Job, Precision
from visllama.plan.lines import BLOCK, CONNECTOR, ENCODE, LOSS, Line, number
from visllama.plan.model import Shapes, Transformer

_UNTIL_CONNECTOR = (LOSS, BLOCK, CONNECTOR)


def activations(shapes: Shapes, job: Job, tokens: float) -> list[Line]:
    """Compute what a micro-batch keeps, its loss included.

    Args:
        shapes: Of the model.
        job: How it is trained.
        tokens: Of each sample, image span included.
    """
    own, samples, layers = job.precision, job.most_at_once, shapes.language
    total, at = samples * tokens, f"{samples} x {tokens:,.4g}"
    is_trained = shapes.is_trained("language_model")
    block = block_bytes(layers, own, is_trained) + adapter_bytes(shapes, own) / layers.num_layers
    last = norm_bytes(layers.width, own, is_trained) + is_trained * own.compute * layers.width
    kept = layers.width * (own.trained if is_trained else own.frozen) if job.recomputes else block
    under_way = own.compute * (layers.ffn_kept * layers.ffn_dim + 2 * layers.width) + job.recomputes * block
    of_image = shapes.connector.kept_bytes * own.compute // 4  # counted in fp32
    if own.is_mixed:
        of_image = shapes.connector.kept_bytes_mixed
        under_way += own.trained * max((adapter.in_dim for adapter in shapes.adapters), default=0)
    loss, v = 3 * max(4, own.compute), shapes.vocabulary  # log-probabilities, their gradient, the logits' gradient
    pixels = 3 * shapes.size_px**2
    of_each = f"{layers.num_layers} x {number(kept)} B"
    name = "a block computed again" if job.recomputes else "a block's backward pass"

    def line(name: str, each: float, formula: str, *moments: str) -> Line:
        return Line(name, round(total * each), f"{at} x {formula}", moments)

    return [
        Line("images of a step", job.num_samples * pixels, f"{job.num_samples} x 3 x {shapes.size_px}^2 B"),
        _vision_line(shapes, job),
        Line("activations: connector", samples * of_image, f"{samples} x {number(of_image)} B", _UNTIL_CONNECTOR),
        line("activations: language model", layers.num_layers * kept + last, of_each, LOSS, BLOCK),
        line("logits", own.compute * v, f"{own.compute} B x {number(v)}", LOSS, BLOCK),
        line("loss and its gradients", loss * v, f"{loss} B x {number(v)}", LOSS),
        line(name, under_way, f"{number(under_way)} B", BLOCK),
        *_copies(shapes, job),
    ]


def _copies(shapes: Shapes, job: Job) -> list[Line]:
    """Give the half-precision copies of trained weights that autocast makes and the backward pass needs."""
    own = job.precision
    cast = [p for p in shapes.parameters if p.is_cast and p.unit != "connector"] if own.is_mixed else []
    again = [p for p in cast if job.recomputes and p.unit.startswith("language_model")]
    kept = sum(p.numel() for p in cast) - sum(p.numel() for p in again)
    of_block = max((sum(p.numel() for p in again if p.unit == unit) for unit in {p.unit for p in again}), default=0)
    copied = own.compute * kept + own.is_mixed * shapes.connector.copied_bytes_mixed
    return [
        Line("copies of trained weights", copied, f"{own.compute} B x {number(copied / own.compute)}", (LOSS, BLOCK)),
        Line("copies in a block", own.compute * of_block, f"{own.compute} B x {number(of_block)}", (BLOCK,)),
    ]


def norm_bytes(width: int, own: Precision, is_trained: bool) -> int:
    """Bytes a token that an RMSNorm keeps: its input and a root in fp32; if its weight trains, what that multiplies."""
    return max(4, own.compute) * (width + 1) + is_trained * own.trained * width


def block_bytes(layers: Transformer, own: Precision, is_trained: bool) -> int:
    """Bytes a token that a block of LLaMA's kind keeps for its backward pass.

    Two norms; queries, keys, values, their result and one fp32 number a head (flash attention); of the gated MLP the
    gate, what the activation makes of it, and what it multiplies. A frozen matrix keeps nothing; one that trains keeps
    its input, which under autocast is a copy for each.
    """
    d, c = layers.width, own.compute
    attention = 2 * c * (layers.query_dim + layers.key_dim) + max(4, c) * layers.num_heads
    kept = 2 * norm_bytes(d, own, is_trained) + attention + layers.ffn_kept * c * layers.ffn_dim
    if is_trained:
        kept += (5 if own.is_mixed else 2) * c * d + c * layers.ffn_dim
    return kept


def adapter_bytes(shapes: Shapes, own: Precision) -> int:
    """Bytes a token that LoRA keeps in all blocks: inputs and their masks, and what the first matrix makes of them."""
    kept, shared = 0, set()
    for adapter in shapes.adapters:
        is_own = own.is_mixed or adapter.has_dropout or adapter.shares_input not in shared
        shared.add(adapter.shares_input)
        kept += own.compute * (is_own * adapter.in_dim + adapter.rank + 2 * adapter.scaled_dim)
        kept += adapter.has_dropout * own.mask * adapter.in_dim
    return kept


def _vision_line(shapes: Shapes, job: Job) -> Line:
    """Give what the encoder needs: frozen, the hidden states of one pass; trained, what a backward pass needs."""
    layers, own, samples = shapes.vision, job.precision, job.most_at_once
    c, d, mlp = own.compute, layers.width, layers.ffn_kept * layers.ffn_dim
    if not shapes.is_trained("vision_encoder"):
        each = c * ((layers.num_layers + 3) * d + mlp)
        pixels = (4 + c * (c < 4)) * 3 * shapes.size_px**2
        formula = f"{samples} x ({shapes.num_positions} x {number(each)} B + {number(pixels)} B)"
        return Line("vision encoder's pass", samples * (shapes.num_positions * each + pixels), formula, (ENCODE,))
    norms = 2 * (own.trained * d + 8) + (0 if own.is_mixed else 2 * c * d)
    block = norms + (8 if own.is_mixed else 4) * c * d + c * mlp + 4 * layers.num_heads
    formula = f"{samples} x {shapes.num_positions} x {layers.num_layers} x {number(block)} B"
    kept = samples * shapes.num_positions * layers.num_layers * block
    return Line("activations: vision encoder", kept, formula, (ENCODE, *_UNTIL_CONNECTOR))
