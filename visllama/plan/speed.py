"""Arithmetic of a sample, and how long a step takes at a stated utilisation and stated bandwidths."""

from __future__ import annotations

from typing import NamedTuple

from visllama.machine.cards import Card
from visllama.plan.job import Job
from visllama.plan.lines import number
from visllama.plan.model import Shapes

_GB = 1e9


class Flops(NamedTuple):
    """Floating-point operations of a sample, forward and backward, of one part."""

    name: str
    count: float
    formula: str


class Rates(NamedTuple):
    """What is assumed of the machines.

    Attributes:
        card: The GPU.
        utilisation: Share of its arithmetic that is reached.
        network_gb_s: Between nodes, of each, one way: 10^9 bytes a second.
    """

    card: Card
    utilisation: float
    network_gb_s: float


def flops(shapes: Shapes, tokens: float, recomputes: bool) -> list[Flops]:
    """Count a sample's arithmetic: two operations a weight a token, and again for each gradient that is due.

    A frozen weight has a forward pass and gives the gradient of its input; one that trains has its own gradient too.

    Args:
        shapes: Of the model.
        tokens: Of a sample, image span included.
        recomputes: Whether blocks run forward twice.
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
        Flops("connector", 3 * shapes.connector.flops, f"3 x {number(shapes.connector.flops)}, counted"),
    ]
    times = 3 if shapes.is_trained("vision_encoder") else 1
    weights = _weights(shapes, "vision_encoder", False) + _weights(shapes, "vision_encoder", True)
    positions = shapes.num_positions
    once = 2 * weights * positions + 4 * vision.num_layers * positions**2 * vision.width
    formula = f"{times} x (2 x {number(weights)} x {positions} + attention)"
    return [f for f in [*found, Flops("vision encoder", times * once, formula)] if f.count]


def _weights(shapes: Shapes, part: str, is_trained: bool) -> int:
    """Count the matrices of a part's blocks."""
    return sum(
        p.numel()
        for p in shapes.parameters
        if p.part == part and p.is_trained == is_trained and p.unit not in ("root", "connector") and len(p.shape) > 1
    )


class StepTime(NamedTuple):
    """Seconds of one optimizer step, and what its ranks send.

    Attributes:
        compute_s: Of the arithmetic, or of reading the weights where that takes longer.
        gather_s: FSDP's all-gathers, beyond what the arithmetic hides.
        reduce_s: Of gradients, after the arithmetic: the connector's come last, with nothing to hide behind.
        update_s: Of the optimizer, bound by the card's memory.
        is_reading: Whether reading the weights takes longer than the arithmetic.
        gathered_bytes, reduced_bytes: That each rank sends.
        card_flops: The card's floating-point operations a second, at most, in the language model's precision.
    """

    job: Job
    compute_s: float
    gather_s: float
    reduce_s: float
    update_s: float
    is_reading: bool
    gathered_bytes: float
    reduced_bytes: float
    card_flops: float

    @property
    def seconds(self) -> float:
        return self.compute_s + self.gather_s + self.reduce_s + self.update_s

    @property
    def samples_per_second(self) -> float:
        return self.job.global_batch_size / self.seconds


def step_time(shapes: Shapes, job: Job, tokens: float, rates: Rates) -> StepTime:
    """Compute how long a step takes on its slowest rank.

    Args:
        shapes: Of the model.
        job: How it is trained.
        tokens: Of a sample on average.
        rates: Of the machines.
    """
    card, own, n = rates.card, job.precision, job.num_ranks
    arithmetic = job.num_samples * sum(f.count for f in flops(shapes, tokens, job.recomputes))
    num_bytes = own.compute(shapes.is_trained("language_model"))
    card_flops = card.flops(num_bytes)
    arithmetic /= rates.utilisation * card_flops
    weights = num_bytes * shapes.numel("language_model")
    reading = job.num_micro_batches * (2 + job.recomputes) * weights / (card.memory_gb_s * _GB)
    compute = max(arithmetic, reading)
    trained = own.trained * shapes.numel(trained=True)
    share = (n - 1) / n
    gathered, reduced = 0.0, 2 * share * trained
    if job.strategy == "fsdp":
        frozen = own.frozen * shapes.numel(trained=False)
        gathered, reduced = 2 * job.num_micro_batches * share * (frozen + trained), share * trained
    update = (3 * own.trained + 2 * job.state_bytes[0]) * shapes.numel(trained=True, num_shards=job.num_shards)
    return StepTime(
        job,
        compute,
        max(0.0, _seconds(gathered, job, rates) - compute),
        _seconds(reduced, job, rates),
        update / (card.memory_gb_s * _GB),
        reading > arithmetic,
        gathered,
        reduced,
        card_flops,
    )


def _seconds(sent_bytes: float, job: Job, rates: Rates) -> float:
    """Return the time of a ring over all ranks: what one sends passes each link, between nodes once a node."""
    slowest = min(rates.card.node_gb_s, rates.network_gb_s) if job.num_nodes > 1 else rates.card.node_gb_s
    return sent_bytes / (slowest * _GB)
