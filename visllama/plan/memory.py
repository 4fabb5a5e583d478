"""Bytes on one rank, line by line, and when each is held; the peak is the moment at which most is."""

from __future__ import annotations

from collections.abc import Callable

from visllama.plan.activations import activations
from visllama.plan.job import Job, Precision
from visllama.plan.lines import CONNECTOR, FIRST_BLOCK, MOMENTS, UPDATE, Line, Memory, number
from visllama.plan.model import Parameter, Shapes

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
        # In a part that trains, what cannot learn is loaded as the rest is; FSDP casts each tensor by itself.
        each = own.trained if shapes.is_trained(part) and n == 1 else own.frozen
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
    """Give what is there for a moment: gradients under way, whole units of a sharded model, copies in an update."""
    own = job.precision
    trained = [p for p in shapes.parameters if p.is_trained]
    largest = max(p.numel() for p in trained)
    each = own.compute * own.is_mixed + own.trained * (job.num_micro_batches > 1)
    lines = [Line("a gradient under way", each * largest, f"{each} B x {number(largest)}", (CONNECTOR,))]
    if not job.updates_in_place:
        group = sum(p.numel(job.num_shards) for p in trained)
        formula = f"{own.trained} B x {number(group)}"
        lines.append(Line("copies in an update", own.trained * group, formula, (UPDATE,)))
    if job.num_shards > 1:
        lines += _gathered(shapes, own)
    return lines


def _gathered(shapes: Shapes, own: Precision) -> list[Line]:
    def whole(chosen: Callable[[Parameter], bool]) -> int:
        return sum(p.numel() * (own.trained if p.is_trained else own.frozen) for p in shapes.parameters if chosen(p))

    units = {p.unit for p in shapes.parameters} - {"root", "connector"}
    root = whole(lambda p: p.unit == "root")
    block, largest = max((whole(lambda p, unit=unit: p.unit == unit), unit) for unit in sorted(units))
    reduced = 2 * own.trained * sum(p.numel() for p in shapes.parameters if p.is_trained and p.unit == largest)
    connector = whole(lambda p: p.unit == "connector")
    learning = 2 * own.trained * sum(p.numel() for p in shapes.parameters if p.is_trained and p.unit == "connector")
    return [
        Line("FSDP's root, whole", root, f"{number(root)} B: embeddings, head", MOMENTS[:-1]),
        Line(
            "FSDP's blocks, whole",
            _BLOCKS_AT_ONCE * block + reduced,
            f"{_BLOCKS_AT_ONCE} x {number(block)} B" + f" + {number(reduced)} B" * bool(reduced),
            MOMENTS[:-2],
        ),
        Line(
            "FSDP's connector, whole",
            connector + learning,
            f"{number(connector)} B + 2 gradients",
            (CONNECTOR,),
        ),
    ]
