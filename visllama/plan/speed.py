"""Time of a step, at a stated utilisation of the card and stated bandwidths."""

from __future__ import annotations

from typing import NamedTuple

from visllama.machine.cards import Card
from visllama.model.flops import flops
from visllama.model.shapes import Shapes
from visllama.plan.job import Job

_GB = 1e9


class Rates(NamedTuple):
    """Speeds that are assumed of the machines.

    Attributes:
        card: The GPU.
        utilisation: Share of the card's arithmetic that is reached, from 0 to 1.
        network_gb_s: Bandwidth of a node's link to other nodes, one way, in 10^9 bytes a second.
    """

    card: Card
    utilisation: float
    network_gb_s: float


class StepTime(NamedTuple):
    """Seconds of one optimizer step, and the bytes that its ranks send.

    Attributes:
        job: How the model is trained.
        compute_s: Time of the arithmetic, or of reading the weights where that takes longer.
        gather_s: Time of FSDP's all-gathers that the arithmetic does not hide.
        reduce_s: Time of reducing gradients after the arithmetic; the connector's come last and hide behind nothing.
        update_s: Time of the optimizer, which is bound by the card's memory.
        is_reading: Whether reading the weights takes longer than the arithmetic.
        gathered_bytes: Bytes of weights that each rank sends in all-gathers.
        reduced_bytes: Bytes of gradients that each rank sends.
        card_flops: Greatest number of floating-point operations a second, in the language model's precision.
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
        """Seconds of the whole step."""
        return self.compute_s + self.gather_s + self.reduce_s + self.update_s

    @property
    def samples_per_second(self) -> float:
        """Samples a second of all ranks together."""
        return self.job.global_batch_size / self.seconds


def step_time(shapes: Shapes, job: Job, tokens: float, rates: Rates) -> StepTime:
    """Return the time of a step on its slowest rank.

    Args:
        shapes: Sizes of the model.
        job: How the model is trained.
        tokens: Tokens of a sample on average, image span included.
        rates: Speeds of the machines.
    """
    card = rates.card
    precision = job.precision
    memory_bandwidth = card.memory_gb_s * _GB

    compute_bytes = precision.compute(shapes.is_trained("language_model"))
    card_flops = card.flops(compute_bytes)
    sample_flops = sum(part.count for part in flops(shapes, tokens, job.recomputes))
    arithmetic_s = job.num_samples * sample_flops / (rates.utilisation * card_flops)

    # Each pass over a micro-batch reads all weights: forward, backward, and forward again for recomputation.
    passes = 3 if job.recomputes else 2
    weights_bytes = compute_bytes * shapes.numel("language_model")
    reading_s = job.num_micro_batches * passes * weights_bytes / memory_bandwidth
    compute_s = max(arithmetic_s, reading_s)

    # In a ring, a rank sends all parts but one: once to reduce and scatter them, and once to gather them.
    trained_bytes = precision.trained * shapes.numel(trained=True)
    share = (job.num_ranks - 1) / job.num_ranks
    if job.strategy == "fsdp":
        # Weights are gathered for the forward and for the backward pass; gradients stay scattered.
        frozen_bytes = precision.frozen * shapes.numel(trained=False)
        gathered_bytes = 2 * job.num_micro_batches * share * (frozen_bytes + trained_bytes)
        reduced_bytes = share * trained_bytes
    else:
        gathered_bytes = 0.0
        reduced_bytes = 2 * share * trained_bytes

    # The optimizer reads weights and gradients and writes weights; it reads and writes its state.
    num_updated = shapes.numel(trained=True, num_shards=job.num_shards)
    updated_bytes = (3 * precision.trained + 2 * job.state_bytes[0]) * num_updated
    return StepTime(
        job=job,
        compute_s=compute_s,
        gather_s=max(0.0, _seconds(gathered_bytes, job, rates) - compute_s),
        reduce_s=_seconds(reduced_bytes, job, rates),
        update_s=updated_bytes / memory_bandwidth,
        is_reading=reading_s > arithmetic_s,
        gathered_bytes=gathered_bytes,
        reduced_bytes=reduced_bytes,
        card_flops=card_flops,
    )


def _seconds(sent_bytes: float, job: Job, rates: Rates) -> float:
    """Return the time of a ring over all ranks, in which what one rank sends passes each link.

    The ring crosses the network once a node, so the slowest link decides.
    """
    slowest_gb_s = rates.card.node_gb_s
    if job.num_nodes > 1:
        slowest_gb_s = min(slowest_gb_s, rates.network_gb_s)
    return sent_bytes / (slowest_gb_s * _GB)
