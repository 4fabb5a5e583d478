"""Find overrides with which a job fits a GPU that it does not fit, by computing the memory of changed jobs.

An *override* is a setting of the command line, as `micro_batch_size=4`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from visllama.machine.cards import Card
from visllama.model.shapes import Shapes
from visllama.plan.job import Job
from visllama.plan.lines import GIB
from visllama.plan.memory import memory

MOST_RANKS = 1024
"""Greatest number of ranks that is tried, beyond those of the job itself."""


def fits_card(shapes: Shapes, job: Job, tokens: float, card: Card) -> bool:
    """Return whether the peak of a rank's memory, allowances included, is no more than the memory of a GPU.

    Args:
        shapes: Sizes of the model.
        job: How the model is trained.
        tokens: Length that each sample is padded to, in tokens, its image vectors included.
        card: The GPU.
    """
    return memory(shapes, job, tokens).peak <= card.memory_gib * GIB


def find_switches(shapes: Shapes, job: Job, tokens: float, card: Card) -> list[str] | None:
    """Return the overrides of `train` that make a job fit a GPU: an empty list if it fits already, None if none do.

    An override is a setting on the command line, as "micro_batch_size=4". Four changes are tried, and the first
    combination that fits is returned: smaller micro-batches; activation checkpointing; FSDP, if there are several
    ranks; more GPUs, up to `MOST_RANKS`. All combinations of the earlier changes in this list are tried before a later
    one.

    Args:
        shapes: Sizes of the model.
        job: How the model is trained.
        tokens: Length that each sample is padded to, in tokens, its image vectors included.
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
    """Return the strategies to try on a number of ranks: the job's own (or "ddp"), then "fsdp"."""
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
    """Return the overrides of `train` for what differs between two jobs; an empty list if nothing does.

    They are of the form `key=value`, for numbers of nodes and devices, a change to FSDP, activation checkpointing and
    the micro-batch. Other differences have no override, as from "one" to "ddp", which `train` chooses itself.

    Args:
        before: The job as the config has it.
        after: The changed job.
    """
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
