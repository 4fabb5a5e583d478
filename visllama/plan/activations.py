"""Memory that forward passes keep for the backward pass, by formulas: bytes of a token, an image, a micro-batch.

A `Line` is one row of the table of memory, and a *moment* is one of the points of a step in `visllama.plan.lines`.
"""

from __future__ import annotations

from visllama.console import number
from visllama.model.shapes import Shapes, Transformer
from visllama.plan.job import Job, Precision
from visllama.plan.lines import CONNECTOR, ENCODE, FIRST_BLOCK, LAST_BLOCK, LOSS, Line

# The moments at which something is held that is freed in the backward pass of the loss, a block, the connector.
_BEFORE_BLOCKS = (LOSS, LAST_BLOCK)
_BLOCKS = (LAST_BLOCK, FIRST_BLOCK)
_UNTIL_BLOCKS = (LOSS, *_BLOCKS)
_UNTIL_CONNECTOR = (*_UNTIL_BLOCKS, CONNECTOR)


def activations(shapes: Shapes, job: Job, tokens: float) -> list[Line]:
    """Compute the memory that one rank needs for the forward and backward pass of its largest micro-batch.

    This is the activations, the logits, the loss with its gradients, autocast's copies of weights, and the images of
    the whole step.

    Args:
        shapes: Sizes of the model, as `read_shapes` returns them.
        job: How the model is trained.
        tokens: Length that each sample is padded to, in tokens, its image vectors included.

    Returns:
        One `Line` (name, bytes, formula, moments of a step) for each kind of memory; some may have zero bytes.
    """
    return [
        _images_line(shapes, job),
        _vision_line(shapes, job),
        _connector_line(shapes, job),
        *_language_lines(shapes, job, tokens),
        *_copies(shapes, job),
    ]


def _images_line(shapes: Shapes, job: Job) -> Line:
    """Return the memory of the uint8 pixels of all micro-batches of a step."""
    samples = job.num_samples
    image_bytes = 3 * shapes.size_px**2
    return Line(
        name="images of a step",
        num_bytes=samples * image_bytes,
        formula=f"{samples} x 3 x {shapes.size_px}^2 B",
    )


def _connector_line(shapes: Shapes, job: Job) -> Line:
    """Return the memory that the connector's forward pass keeps for its backward pass."""
    samples = job.most_at_once
    if job.precision.is_mixed:
        of_image = shapes.connector.kept_bytes_mixed
    else:
        # It was counted in fp32, where a number has four bytes.
        of_image = shapes.connector.kept_bytes * job.precision.trained // 4

    return Line(
        name="activations: connector",
        num_bytes=samples * of_image,
        formula=f"{samples} x {number(of_image)} B",
        moments=_UNTIL_CONNECTOR,
    )


def _language_lines(shapes: Shapes, job: Job, tokens: float) -> list[Line]:
    """Return the memory of the language model's blocks, of its head and of the loss."""
    layers = shapes.language
    precision = job.precision
    samples = job.most_at_once
    is_trained = shapes.is_trained("language_model")
    compute = precision.compute(is_trained)

    def line(name: str, bytes_per_token: float, formula: str, moments: tuple[str, ...]) -> Line:
        num_bytes = round(samples * tokens * bytes_per_token)
        return Line(name, num_bytes, f"{samples} x {tokens:,.4g} x {formula}", moments)

    adapters_of_block = adapter_bytes(shapes, precision) / layers.num_layers
    block = block_bytes(layers, precision, is_trained) + adapters_of_block
    kept_bytes = block
    if job.recomputes:
        # Only a block's input is kept.
        input_bytes = precision.trained if is_trained else precision.frozen
        kept_bytes = layers.width * input_bytes

    # Behind the blocks, the last norm; where the head trains, it keeps its input.
    last = norm_bytes(layers.width, precision, is_trained)
    if is_trained:
        last += compute * layers.width

    # The log-probabilities, their gradient and the gradient of the logits, in fp32 at least.
    loss = 3 * max(4, compute)
    vocabulary = shapes.vocabulary
    lines = [
        line(
            "activations: language model",
            layers.num_layers * kept_bytes + last,
            f"{layers.num_layers} x {number(kept_bytes)} B",
            _BEFORE_BLOCKS,
        ),
        line("logits", compute * vocabulary, f"{compute} B x {number(vocabulary)}", _UNTIL_BLOCKS),
        line("loss and its gradients", loss * vocabulary, f"{loss} B x {number(vocabulary)}", (LOSS,)),
    ]

    under_way = _under_way_bytes(shapes, precision)
    if job.recomputes:
        again = block + under_way
        lines.append(line("a block computed again", again, f"{number(again)} B", _BLOCKS))
    else:
        lines.append(line("a block's gradients", under_way, f"{number(under_way)} B", _BLOCKS))
        lines.append(line("a block's activations", block, f"{number(block)} B", (FIRST_BLOCK,)))
    return lines


def _under_way_bytes(shapes: Shapes, precision: Precision) -> int:
    """Return the bytes of the gradients inside a block in its backward pass, for each token."""
    layers = shapes.language
    compute = precision.compute(shapes.is_trained("language_model"))

    # The gradients of what the MLP keeps, and of the block's input and its output.
    of_mlp = layers.ffn_kept * layers.ffn_dim
    num_bytes = compute * (of_mlp + 2 * layers.width)
    if precision.frozen < precision.trained:
        # The gradient of an adapter's input is in the adapter's own precision at first; the widest one counts.
        input_widths = [adapter.in_dim for adapter in shapes.adapters]
        num_bytes += precision.trained * max(input_widths, default=0)
    return num_bytes


def _copies(shapes: Shapes, job: Job) -> list[Line]:
    """Return the half-precision copies of trained weights that autocast makes and the backward pass needs."""
    precision = job.precision
    if not precision.is_mixed:
        return []

    unit_bytes: dict[str, int] = {}
    for parameter in shapes.parameters:
        # The copies of the connector were counted with its activations.
        if parameter.is_cast and parameter.unit != "connector":
            num_bytes = precision.frozen * parameter.numel()
            unit_bytes[parameter.unit] = unit_bytes.get(parameter.unit, 0) + num_bytes

    # A block that is computed again makes its copies again: they are held one block at a time.
    block_copies = [size for unit, size in unit_bytes.items() if unit.startswith("language_model")]
    kept_copies = sum(unit_bytes.values())
    block_moments = (FIRST_BLOCK,)
    if job.recomputes:
        kept_copies -= sum(block_copies)
        block_moments = _BLOCKS

    copies = [
        ("copies of connector's weights", shapes.connector.copied_bytes_mixed, _UNTIL_BLOCKS),
        ("copies of trained weights", kept_copies, _BEFORE_BLOCKS),
        ("copies of a block's weights", max(block_copies, default=0), block_moments),
    ]
    lines = []
    for name, size, moments in copies:
        formula = f"{precision.frozen} B x {number(size / precision.frozen)}"
        lines.append(Line(name, size, formula, moments))
    return lines


def norm_bytes(width: int, precision: Precision, is_trained: bool) -> int:
    """Return the bytes that an RMSNorm keeps for its backward pass, for each token.

    It keeps its input and one reciprocal root, in fp32 at least; if its weight trains, also the normalised input.

    Args:
        width: Width of the hidden states.
        precision: Bytes that a number takes in frozen and in trained weights.
        is_trained: Whether the language model trains.
    """
    num_bytes = max(4, precision.compute(is_trained)) * (width + 1)
    if is_trained:
        num_bytes += precision.trained * width
    return num_bytes


def block_bytes(layers: Transformer, precision: Precision, is_trained: bool) -> int:
    """Return the bytes that a block of LLaMA's kind keeps for its backward pass, for each token, without LoRA.

    It keeps what two norms keep; queries, keys, values, their result and one fp32 number a head (flash attention); and
    of the gated MLP the gate, the activated gate and what that multiplies. A frozen matrix keeps nothing; one that
    trains keeps its input, which under autocast is a copy for each matrix.

    Args:
        layers: Sizes of the language model.
        precision: Bytes that a number takes in frozen and in trained weights.
        is_trained: Whether the language model trains.
    """
    width = layers.width
    compute = precision.compute(is_trained)

    norms = 2 * norm_bytes(width, precision, is_trained)
    vectors = 2 * compute * (layers.query_dim + layers.key_dim)
    head_numbers = max(4, compute) * layers.num_heads
    mlp = layers.ffn_kept * compute * layers.ffn_dim
    num_bytes = norms + vectors + head_numbers + mlp
    if is_trained:
        # Five matrices read a normed hidden state (queries, keys, values, gate, up), out of two norms.
        num_inputs = 5 if precision.is_mixed else 2
        num_bytes += num_inputs * compute * width
        # The MLP's last matrix reads what the activated gate multiplies.
        num_bytes += compute * layers.ffn_dim
    return num_bytes


def adapter_bytes(shapes: Shapes, precision: Precision) -> int:
    """Return the bytes that LoRA keeps for its backward pass, for each token, in all blocks together.

    It keeps the inputs of the adapters, their dropout masks, the outputs of each adapter's first matrix, and for DoRA
    two vectors as wide as the layer's output.

    Args:
        shapes: Sizes of the model; without adapters the result is 0.
        precision: Bytes that a number takes in frozen and in trained weights.
    """
    compute = precision.compute(is_trained=True)

    # Autocast copies an input for each adapter, or PEFT converts it to the adapter's own precision.
    is_copied = precision.frozen < precision.trained

    num_bytes = 0
    counted_inputs = set()
    for adapter in shapes.adapters:
        num_bytes += compute * (adapter.rank + 2 * adapter.scaled_dim)
        has_own_input = is_copied or adapter.has_dropout
        if has_own_input or adapter.shares_input not in counted_inputs:
            num_bytes += compute * adapter.in_dim
        if adapter.has_dropout:
            num_bytes += precision.mask * adapter.in_dim
        counted_inputs.add(adapter.shares_input)
    return num_bytes


def _vision_line(shapes: Shapes, job: Job) -> Line:
    """Return the memory of the vision encoder's activations.

    A frozen encoder needs the hidden states of one forward pass; one that trains keeps what the backward pass needs.
    """
    layers = shapes.vision
    precision = job.precision
    samples = job.most_at_once
    positions = shapes.num_positions
    is_trained = shapes.is_trained("vision_encoder")
    compute = precision.compute(is_trained)
    width = layers.width
    mlp = compute * layers.ffn_kept * layers.ffn_dim

    if not is_trained:
        num_states = layers.num_layers + 3
        per_position = compute * num_states * width + mlp

        # The normalised pixels are fp32, and are copied where the encoder computes in half precision.
        bytes_per_pixel = 4 + compute if compute < 4 else 4
        pixels = bytes_per_pixel * 3 * shapes.size_px**2
        image_bytes = positions * per_position + pixels
        return Line(
            name="vision encoder's pass",
            num_bytes=samples * image_bytes,
            formula=f"{samples} x ({positions} x {number(per_position)} B + {number(pixels)} B)",
            moments=(ENCODE,),
        )

    # A LayerNorm keeps its input and two fp32 numbers. Its output is kept once for all matrices that read it; under
    # autocast each of the four matrices has a copy of its own.
    norms = 2 * (precision.trained * width + 8)
    num_inputs = 4 if precision.is_mixed else 2
    inputs = num_inputs * compute * width

    # Attention keeps queries, keys, values and their result, and one fp32 number a head.
    attention = 4 * compute * width + 4 * layers.num_heads
    block = norms + inputs + attention + mlp
    return Line(
        name="activations: vision encoder",
        num_bytes=samples * positions * layers.num_layers * block,
        formula=f"{samples} x {positions} x {layers.num_layers} x {number(block)} B",
        moments=(ENCODE, *_UNTIL_CONNECTOR),
    )
