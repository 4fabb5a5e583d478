"""Compute the memory of one rank: weights, gradients, the optimizer's state, activations and FSDP's buffers.

Each is a `Line`, with the moments (points of a step) at which it is held.
"""

from __future__ import annotations

from collections import defaultdict

from visllama.console import number
from visllama.model.shapes import Shapes
from visllama.plan.activations import activations
from visllama.plan.job import Job
from visllama.plan.lines import CONNECTOR, FIRST_BLOCK, MOMENTS, UPDATE, Line, Memory

_BLOCKS_AT_ONCE = 3
"""Number of blocks that FSDP holds whole: one computes, the next one is gathered, and a buffer is not yet free."""


def memory(shapes: Shapes, job: Job, tokens: float) -> Memory:
    """Compute the memory of one rank in a training step, without running anything.

    The result has one `Line` for each kind of memory that takes any bytes, such as weights, gradients and activations.

    Args:
        shapes: Sizes of the model, as `read_shapes` returns them.
        job: How the model is trained.
        tokens: Length that each sample of a micro-batch is padded to, in tokens, its image vectors included.
    """
    lines = [
        *_weights(shapes, job),
        *activations(shapes, job, tokens),
        *_passing(shapes, job),
    ]
    return Memory([line for line in lines if line.num_bytes], job.num_ranks)


def _weights(shapes: Shapes, job: Job) -> list[Line]:
    """Return the memory of weights, of the optimizer's state and of gradients that are kept."""
    precision = job.precision
    num_shards = job.num_shards
    over_shards = f" / {num_shards}" if num_shards > 1 else ""

    num_trained = shapes.numel(trained=True)
    trained_bytes = precision.trained * num_trained
    trained_formula = f"{precision.trained} B x {number(num_trained)}"
    num_held = shapes.numel(trained=True, num_shards=num_shards)
    held_bytes = precision.trained * num_held

    state_bytes, bytes_per_tensor = job.state_bytes
    num_tensors = sum(parameter.is_trained for parameter in shapes.parameters)
    state = round(state_bytes * num_held) + bytes_per_tensor * num_tensors

    # With several micro-batches, gradients are kept from one to the next.
    keeps_gradients = job.num_micro_batches > 1
    gradient_moments = MOMENTS if keeps_gradients else (CONNECTOR, UPDATE)

    held_formula = f"{trained_formula}{over_shards}"
    state_formula = f"{state_bytes:g} B x {number(num_trained)}{over_shards}"
    lines = [
        Line("trained weights", held_bytes, held_formula),
        _frozen_line(shapes, job, "language_model"),
        _frozen_line(shapes, job, "vision_encoder"),
        Line("optimizer's state", state, state_formula),
        Line("gradients", held_bytes, held_formula, gradient_moments),
    ]

    if not keeps_gradients:
        # At the first block's backward pass, the gradients of all that lies behind it exist already.
        num_behind = 0
        for parameter in shapes.parameters:
            if parameter.is_trained and parameter.is_behind_first_block:
                num_behind += parameter.numel(num_shards)
        so_far = Line(
            name="gradients so far",
            num_bytes=precision.trained * num_behind,
            formula=f"{precision.trained} B x {number(num_behind)}: of later blocks",
            moments=(FIRST_BLOCK,),
        )
        lines.append(so_far)

    if job.strategy == "ddp" and job.num_ranks > 1:
        lines.append(Line("DDP's gradient buckets", held_bytes, trained_formula))

    if num_shards > 1 and keeps_gradients:
        # FSDP reduces gradients in the last micro-batch alone, and until then each rank has them whole.
        formula = f"{trained_formula}, not yet reduced"
        lines.append(Line("gradients, whole", trained_bytes, formula, MOMENTS[:-1]))
    return lines


def _frozen_line(shapes: Shapes, job: Job, part: str) -> Line:
    """Return the memory of the frozen weights of a part, "language_model" or "vision_encoder"."""
    precision = job.precision
    num_shards = job.num_shards
    over_shards = f" / {num_shards}" if num_shards > 1 else ""

    # In a part that trains, tensors that cannot learn are loaded in the precision of the others.
    bytes_per_number = precision.trained if shapes.is_trained(part) else precision.frozen
    num_frozen = shapes.numel(part, trained=False)
    num_held = shapes.numel(part, trained=False, num_shards=num_shards)
    part_words = part.replace("_", " ")
    return Line(
        name=f"frozen {part_words}",
        num_bytes=bytes_per_number * num_held,
        formula=f"{bytes_per_number} B x {number(num_frozen)}{over_shards}",
    )


def _passing(shapes: Shapes, job: Job) -> list[Line]:
    """Return what is held for a short time only.

    This is the gradient that is being computed, the copies in the optimizer's step, and the units that FSDP gathers.
    """
    precision = job.precision
    num_shards = job.num_shards
    trained = [parameter for parameter in shapes.parameters if parameter.is_trained]

    # The gradient of the half-precision copy, and with several micro-batches the one that is added to those kept.
    bytes_per_number = 0
    if precision.is_mixed:
        bytes_per_number += precision.frozen
    if job.num_micro_batches > 1:
        bytes_per_number += precision.trained
    largest = max(parameter.numel() for parameter in trained)

    # FSDP reduces the gradients of a unit together, out of a copy.
    of_connector = sum(parameter.numel() for parameter in trained if parameter.unit == "connector")
    reduced_bytes = precision.trained * of_connector
    if num_shards > 1 and reduced_bytes > bytes_per_number * largest:
        bytes_per_number = precision.trained
        largest = of_connector

    under_way = Line(
        name="a gradient under way",
        num_bytes=bytes_per_number * largest,
        formula=f"{bytes_per_number} B x {number(largest)}",
        moments=(CONNECTOR,),
    )
    lines = [under_way]

    if not job.updates_in_place:
        num_held = shapes.numel(trained=True, num_shards=num_shards)
        copies = Line(
            name="copies in an update",
            num_bytes=precision.trained * num_held,
            formula=f"{precision.trained} B x {number(num_held)}",
            moments=(UPDATE,),
        )
        lines.append(copies)

    if num_shards > 1:
        lines.extend(_gathered(shapes, job))
    return lines


def _gathered(shapes: Shapes, job: Job) -> list[Line]:
    """Return the memory of the units that FSDP has gathered, and of the gradients that it reduces."""
    weights: dict[str, int] = defaultdict(int)
    gradients: dict[str, int] = defaultdict(int)
    for parameter in shapes.parameters:
        if parameter.is_trained:
            num_bytes = job.precision.trained * parameter.numel()
            gradients[parameter.unit] += num_bytes
        else:
            num_bytes = job.precision.frozen * parameter.numel()
        weights[parameter.unit] += num_bytes

    root = weights.pop("root")
    connector = weights.pop("connector")
    largest_unit = max(weights, key=weights.__getitem__)

    # While a block's gradients are reduced, FSDP holds them twice: as computed, and in the buffer that it sends.
    block = weights[largest_unit]
    reduced = 2 * gradients[largest_unit]
    blocks_formula = f"{_BLOCKS_AT_ONCE} x {number(block)} B"
    if reduced:
        blocks_formula += f" + {number(reduced)} B"
    block_bytes = _BLOCKS_AT_ONCE * block + reduced

    # With several micro-batches, gradients are held whole in any case and are counted there.
    gradient = 0 if job.num_micro_batches > 1 else gradients["connector"]
    connector_formula = f"{number(connector)} B"
    if gradient:
        connector_formula += f" + {number(gradient)} B"

    # The root is gathered until the optimizer's step, and blocks until the backward pass of the connector.
    root_formula = f"{number(root)} B: embeddings, head"
    return [
        Line("FSDP's root, whole", root, root_formula, MOMENTS[:-1]),
        Line("FSDP's blocks, whole", block_bytes, blocks_formula, MOMENTS[:-2]),
        Line("FSDP's connector, whole", connector + gradient, connector_formula, (CONNECTOR,)),
    ]
