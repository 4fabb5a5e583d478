"""What forward passes keep for the backward pass, in closed form: bytes a token, an image, a micro-batch."""

from __future__ import annotations

from visllama.console import number
from visllama.model.shapes import Shapes, Transformer
from visllama.plan.job import Job, Precision
from visllama.plan.lines import CONNECTOR, ENCODE, FIRST_BLOCK, LAST_BLOCK, LOSS, Line

_BEFORE_BLOCKS = (LOSS, LAST_BLOCK)
_BLOCKS = (LAST_BLOCK, FIRST_BLOCK)
_UNTIL_BLOCKS = (LOSS, *_BLOCKS)
_UNTIL_CONNECTOR = (*_UNTIL_BLOCKS, CONNECTOR)


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
    compute = own.compute(is_trained)
    last = norm_bytes(layers.width, own, is_trained) + is_trained * compute * layers.width
    kept = layers.width * (own.trained if is_trained else own.frozen) if job.recomputes else block
    under_way = compute * (layers.ffn_kept * layers.ffn_dim + 2 * layers.width)
    if own.frozen < own.trained:
        under_way += own.trained * max((adapter.in_dim for adapter in shapes.adapters), default=0)
    of_image = shapes.connector.kept_bytes * own.trained // 4  # counted in fp32
    if own.is_mixed:
        of_image = shapes.connector.kept_bytes_mixed
    loss, v = 3 * max(4, compute), shapes.vocabulary  # log-probabilities, their gradient, the logits' gradient
    pixels = 3 * shapes.size_px**2

    def line(name: str, each: float, formula: str, moments: tuple[str, ...]) -> Line:
        return Line(name, round(total * each), f"{at} x {formula}", moments)

    lines = [
        Line("images of a step", job.num_samples * pixels, f"{job.num_samples} x 3 x {shapes.size_px}^2 B"),
        _vision_line(shapes, job),
        Line("activations: connector", samples * of_image, f"{samples} x {number(of_image)} B", _UNTIL_CONNECTOR),
        line(
            "activations: language model",
            layers.num_layers * kept + last,
            f"{layers.num_layers} x {number(kept)} B",
            _BEFORE_BLOCKS,
        ),
        line("logits", compute * v, f"{compute} B x {number(v)}", _UNTIL_BLOCKS),
        line("loss and its gradients", loss * v, f"{loss} B x {number(v)}", (LOSS,)),
    ]
    if job.recomputes:
        lines.append(line("a block computed again", block + under_way, f"{number(block + under_way)} B", _BLOCKS))
    else:
        lines.append(line("a block's gradients", under_way, f"{number(under_way)} B", _BLOCKS))
        lines.append(line("a block's activations", block, f"{number(block)} B", (FIRST_BLOCK,)))
    return [*lines, *_copies(shapes, job)]


def _copies(shapes: Shapes, job: Job) -> list[Line]:
    """Return the half-precision copies of trained weights that autocast makes and the backward pass needs."""
    own = job.precision
    if not own.is_mixed:
        return []
    units: dict[str, int] = {}
    for parameter in shapes.parameters:
        if parameter.is_cast and parameter.unit != "connector":
            units[parameter.unit] = units.get(parameter.unit, 0) + own.frozen * parameter.numel()
    again = [size for unit, size in units.items() if unit.startswith("language_model")]
    kept = sum(units.values()) - (sum(again) if job.recomputes else 0)
    of_block, of_connector = max(again, default=0), shapes.connector.copied_bytes_mixed
    lines = [
        ("copies of connector's weights", of_connector, _UNTIL_BLOCKS),
        ("copies of trained weights", kept, _BEFORE_BLOCKS),
        ("copies of a block's weights", of_block, _BLOCKS if job.recomputes else (FIRST_BLOCK,)),
    ]
    return [Line(name, size, f"{own.frozen} B x {number(size / own.frozen)}", held) for name, size, held in lines]


def norm_bytes(width: int, own: Precision, is_trained: bool) -> int:
    """Bytes a token that an RMSNorm keeps: its input and a root in fp32; if its weight trains, what that multiplies."""
    return max(4, own.compute(is_trained)) * (width + 1) + is_trained * own.trained * width


def block_bytes(layers: Transformer, own: Precision, is_trained: bool) -> int:
    """Bytes a token that a block of LLaMA's kind keeps for its backward pass.

    Two norms; queries, keys, values, their result and one fp32 number a head (flash attention); of the gated MLP the
    gate, what the activation makes of it, and what it multiplies. A frozen matrix keeps nothing; one that trains keeps
    its input, which under autocast is a copy for each.
    """
    d, c = layers.width, own.compute(is_trained)
    attention = 2 * c * (layers.query_dim + layers.key_dim) + max(4, c) * layers.num_heads
    kept = 2 * norm_bytes(d, own, is_trained) + attention + layers.ffn_kept * c * layers.ffn_dim
    if is_trained:
        kept += (5 if own.is_mixed else 2) * c * d + c * layers.ffn_dim
    return kept


def adapter_bytes(shapes: Shapes, own: Precision) -> int:
    """Bytes a token that LoRA keeps in all blocks: inputs and their masks, and what the first matrix makes of them."""
    kept, shared = 0, set()
    compute = own.compute(is_trained=True)
    is_copied = own.frozen < own.trained  # by autocast, or by PEFT to the adapter's own precision
    for adapter in shapes.adapters:
        is_own = is_copied or adapter.has_dropout or adapter.shares_input not in shared
        shared.add(adapter.shares_input)
        kept += compute * (is_own * adapter.in_dim + adapter.rank + 2 * adapter.scaled_dim)
        kept += adapter.has_dropout * own.mask * adapter.in_dim
    return kept


def _vision_line(shapes: Shapes, job: Job) -> Line:
    """Return what the encoder needs: frozen, the hidden states of one pass; trained, what a backward pass needs."""
    layers, own, samples = shapes.vision, job.precision, job.most_at_once
    is_trained = shapes.is_trained("vision_encoder")
    c, d, mlp = own.compute(is_trained), layers.width, layers.ffn_kept * layers.ffn_dim
    if not is_trained:
        each = c * ((layers.num_layers + 3) * d + mlp)
        pixels = (4 + c * (c < 4)) * 3 * shapes.size_px**2
        formula = f"{samples} x ({shapes.num_positions} x {number(each)} B + {number(pixels)} B)"
        return Line("vision encoder's pass", samples * (shapes.num_positions * each + pixels), formula, (ENCODE,))
    norms = 2 * (own.trained * d + 8) + (0 if own.is_mixed else 2 * c * d)
    block = norms + (8 if own.is_mixed else 4) * c * d + c * mlp + 4 * layers.num_heads
    formula = f"{samples} x {shapes.num_positions} x {layers.num_layers} x {number(block)} B"
    kept = samples * shapes.num_positions * layers.num_layers * block
    return Line("activations: vision encoder", kept, formula, (ENCODE, *_UNTIL_CONNECTOR))
