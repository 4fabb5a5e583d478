"""How long a step takes at a stated utilisation and stated bandwidths."""

from __future__ import annotations

from typing import NamedTuple

from visllama.machine.cards import Card
from visllama.model.flops import flops
from visllama.model.shapes import Shapes
from visllama.plan.job import Job

_GB = 1e9


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
