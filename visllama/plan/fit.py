"""The overrides with which a job fits that does not fit, found by computing its memory again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from visllama.machine.cards import Card
from visllama.model.shapes import Shapes
from visllama.plan.job import Job
from visllama.plan.lines import GIB
from visllama.plan.memory import memory

MOST_RANKS = 1024
"""Greatest number of ranks that is tried."""


def fits_card(shapes: Shapes, job: Job, tokens: float, card: Card) -> bool:
    """Return whether a job fits a card.

    Args:
        shapes: Sizes of the model.
        job: How the model is trained.
        tokens: Tokens of each sample, image span included.
        card: The GPU.
    """
    return memory(shapes, job, tokens).peak <= card.memory_gib * GIB


def find_switches(shapes: Shapes, job: Job, tokens: float, card: Card) -> list[str] | None:
    """Return the overrides with which a job fits a card; None where it fits with none.

    They are tried in this order, each together with those before it: fewer samples at once, activation checkpointing,
    shards, more ranks.

    Args:
        shapes: Sizes of the model.
        job: How the model is trained.
        tokens: Tokens of each sample, image span included.
        card: The GPU.
    """
    for changed in _changes(job):
        if fits_card(shapes, changed, tokens, card):
            return overrides(job, changed)
    return None


def _changes(job: Job) -> Iterator[Job]:
    """Yield the job and its changes, from the least to the greatest."""
    for num_nodes, num_devices in _ranks(job):
        for strategy in _strategies(job, num_nodes * num_devices):
            # Without repetition: a job that recomputes already has one choice here.
            for recomputes in dict.fromkeys((job.recomputes, True)):
                changed = replace(
                    job,
                    num_nodes=num_nodes,
                    num_devices=num_devices,
                    strategy=strategy,
                    recomputes=recomputes,
                )
                yield changed

                # The powers of two below the present micro-batch, the largest first.
                num_powers = (changed.most_at_once - 1).bit_length()
                for exponent in reversed(range(num_powers)):
                    yield replace(changed, micro_batch_size=2**exponent)


def _strategies(job: Job, num_ranks: int) -> list[str]:
    """Return the strategies to try on so many ranks, without repeating one."""
    if num_ranks == 1:
        return [job.strategy]
    first = "ddp" if job.strategy == "one" else job.strategy
    return list(dict.fromkeys((first, "fsdp")))


def _ranks(job: Job) -> Iterator[tuple[int, int]]:
    """Yield numbers of nodes and of devices a node: the job's own, more in one node, then more nodes of eight."""
    yield job.num_nodes, job.num_devices
    if job.num_nodes == 1:
        for devices in (2, 4, 8):
            if devices > job.num_devices:
                yield 1, devices

    # Beyond one node, a cluster's nodes usually have eight cards.
    nodes = 2 * job.num_nodes
    devices = max(job.num_devices, 8)
    while nodes * devices <= MOST_RANKS:
        yield nodes, devices
        nodes *= 2


def overrides(before: Job, after: Job) -> list[str]:
    """Return the overrides of `train` that turn one job into another."""
    changes = []
    if after.num_nodes != before.num_nodes:
        changes.append(f"trainer.num_nodes={after.num_nodes}")
    if after.num_devices != before.num_devices:
        changes.append(f"trainer.devices={after.num_devices}")
    if after.strategy != before.strategy and after.strategy == "fsdp":
        changes.append("trainer/strategy=fsdp")
    if after.recomputes != before.recomputes:
        changes.append("trainer.activation_checkpointing=true")
    if after.micro_batch_size != before.micro_batch_size:
        changes.append(f"micro_batch_size={after.micro_batch_size}")
    return changes
