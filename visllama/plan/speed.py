"""Compute the time of an optimizer step from operations, bytes and speeds, without running it."""

from __future__ import annotations

from typing import NamedTuple

from visllama.machine.cards import Card
from visllama.model.flops import flops
from visllama.model.shapes import Shapes
from visllama.plan.job import Job

_GB = 1e9


class Rates(NamedTuple):
    """The speeds of the machines that a time is computed for.

    Attributes:
        card: The GPU, with its peak speeds.
        utilisation: Share of the GPU's peak operations a second that is reached, between 0 and 1.
        network_gb_s: Bandwidth of a machine's link to other machines, one way, in 10^9 bytes a second.
    """

    card: Card
    utilisation: float
    network_gb_s: float


class StepTime(NamedTuple):
    """Seconds of one optimizer step, and the bytes that each rank sends in it.

    Attributes:
        job: How the model is trained.
        compute_s: Seconds of the arithmetic, or of reading the weights from the GPU's memory if that takes longer.
        gather_s: Seconds by which FSDP's all-gathers take longer than `compute_s`, during which they run; else 0.
        reduce_s: Seconds of summing the gradients over the ranks, which is counted as if it all came after the
            arithmetic.
        update_s: Seconds of the optimizer's update, which is limited by the bandwidth of the GPU's memory.
        is_reading: Whether reading the weights takes longer than the arithmetic.
        gathered_bytes: Bytes of weights that each rank sends in all-gathers; 0 without FSDP.
        reduced_bytes: Bytes of gradients that each rank sends.
        card_flops: Peak operations of the GPU a second, in the precision of the language model.
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
        """Seconds of the whole step: the sum of its four times."""
        return self.compute_s + self.gather_s + self.reduce_s + self.update_s

    @property
    def samples_per_second(self) -> float:
        """Number of samples that all ranks together train on in a second."""
        return self.job.global_batch_size / self.seconds


def step_time(shapes: Shapes, job: Job, tokens: float, rates: Rates) -> StepTime:
    """Compute the time of one optimizer step on the rank with the most samples, without running it.

    Args:
        shapes: Sizes of the model, as `read_shapes` returns them.
        job: How the model is trained.
        tokens: Mean length of a sample in tokens, its image vectors included.
        rates: The GPU, and the speeds that are assumed.
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
    """Return the seconds in which each rank sends some bytes around a ring of all ranks.

    The ring leaves each node once for the next one, so the slowest of its links decides.
    """
    slowest_gb_s = rates.card.node_gb_s
    if job.num_nodes > 1:
        slowest_gb_s = min(slowest_gb_s, rates.network_gb_s)
    return sent_bytes / (slowest_gb_s * _GB)
