"""Bytes on one rank, line by line, and when each is held; the peak is the moment at which most is."""

from __future__ import annotations

from visllama.console import number
from visllama.model.shapes import Shapes
from visllama.plan.activations import activations
from visllama.plan.job import Job
from visllama.plan.lines import CONNECTOR, FIRST_BLOCK, MOMENTS, UPDATE, Line, Memory

_BLOCKS_AT_ONCE = 3
"""Under FSDP: one computes, the next one is whole, and what it was gathered in is not yet free."""


def memory(shapes: Shapes, job: Job, tokens: float) -> Memory:
    """Compute what a rank holds.

    Args:
        shapes: Of the model.
        job: How it is trained.
        tokens: Of each sample in the micro-batch, image span included.
    """
    lines = [*_weights(shapes, job), *activations(shapes, job, tokens), *_passing(shapes, job)]
    return Memory([line for line in lines if line.num_bytes], job.num_ranks)


def _weights(shapes: Shapes, job: Job) -> list[Line]:
    own, n = job.precision, job.num_shards
    over = f" / {n}" if n > 1 else ""
    trained = shapes.numel(trained=True, num_shards=n)
    whole = number(shapes.numel(trained=True))

    def frozen(part: str) -> Line:
        each = own.trained if shapes.is_trained(part) else own.frozen  # what cannot learn is loaded as the rest is
        held = each * shapes.numel(part, trained=False, num_shards=n)
        formula = f"{each} B x {number(shapes.numel(part, trained=False))}{over}"
        return Line(f"frozen {part.replace('_', ' ')}", held, formula)

    is_kept = job.num_micro_batches > 1  # from one micro-batch to the next
    after = MOMENTS if is_kept else (CONNECTOR, UPDATE)
    behind = sum(p.numel(n) for p in shapes.parameters if p.is_trained and p.is_behind_first_block)
    each, a_tensor = job.state_bytes
    num_tensors = sum(p.is_trained for p in shapes.parameters)
    held = [
        Line("trained weights", own.trained * trained, f"{own.trained} B x {whole}{over}"),
        frozen("language_model"),
        frozen("vision_encoder"),
        Line("optimizer's state", round(each * trained) + a_tensor * num_tensors, f"{each:g} B x {whole}{over}"),
        Line("gradients", own.trained * trained, f"{own.trained} B x {whole}{over}", after),
    ]
    if not is_kept:
        formula = f"{own.trained} B x {number(behind)}: of later blocks"
        held.append(Line("gradients so far", own.trained * behind, formula, (FIRST_BLOCK,)))
    if job.strategy == "ddp" and job.num_ranks > 1:
        held.append(Line("DDP's gradient buckets", own.trained * trained, f"{own.trained} B x {whole}"))
    if n > 1 and is_kept:
        unreduced = own.trained * shapes.numel(trained=True)
        formula = f"{own.trained} B x {whole}, not yet reduced"
        held.append(Line("gradients, whole", unreduced, formula, MOMENTS[:-1]))
    return held


def _passing(shapes: Shapes, job: Job) -> list[Line]:
    """Return what is there for a moment: gradients under way, whole units of a sharded model, copies in an update."""
    own, n = job.precision, job.num_shards
    trained = [p for p in shapes.parameters if p.is_trained]
    each, largest = (
        own.frozen * own.is_mixed + own.trained * (job.num_micro_batches > 1),
        max(p.numel() for p in trained),
    )
    of_connector = sum(p.numel() for p in trained if p.unit == "connector")
    if n > 1 and own.trained * of_connector > each * largest:
        each, largest = own.trained, of_connector  # FSDP reduces a unit's gradients together, out of a copy
    lines = [Line("a gradient under way", each * largest, f"{each} B x {number(largest)}", (CONNECTOR,))]
    if not job.updates_in_place:
        formula = f"{own.trained} B x {number(shapes.numel(trained=True, num_shards=n))}"
        size = own.trained * shapes.numel(trained=True, num_shards=n)
        lines.append(Line("copies in an update", size, formula, (UPDATE,)))
    return [*lines, *_gathered(shapes, job)] if n > 1 else lines


def _gathered(shapes: Shapes, job: Job) -> list[Line]:
    own = job.precision
    whole: dict[str, int] = {}
    learning: dict[str, int] = {}
    for p in shapes.parameters:
        whole[p.unit] = whole.get(p.unit, 0) + p.numel() * (own.trained if p.is_trained else own.frozen)
        learning[p.unit] = learning.get(p.unit, 0) + p.numel() * own.trained * p.is_trained
    root, connector = whole.pop("root"), whole.pop("connector")
    largest = max(whole, key=whole.__getitem__)
    reduced = 2 * learning[largest]
    gradient = 0 if job.num_micro_batches > 1 else learning["connector"]  # they are held whole in any case
    of_blocks = f"{_BLOCKS_AT_ONCE} x {number(whole[largest])} B" + f" + {number(reduced)} B" * bool(reduced)
    of_connector = f"{number(connector)} B" + f" + {number(gradient)} B" * bool(gradient)
    return [
        Line("FSDP's root, whole", root, f"{number(root)} B: embeddings, head", MOMENTS[:-1]),
        Line("FSDP's blocks, whole", _BLOCKS_AT_ONCE * whole[largest] + reduced, of_blocks, MOMENTS[:-2]),
        Line("FSDP's connector, whole", connector + gradient, of_connector, (CONNECTOR,)),
    ]
