"""Which switches make a job fit that does not, found by computing its memory again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from visllama.machine.cards import Card
from visllama.model.shapes import Shapes
from visllama.plan.job import Job
from visllama.plan.lines import GIB
from visllama.plan.memory import memory

MOST_RANKS = 1024


def fits_card(shapes: Shapes, job: Job, tokens: float, card: Card) -> bool:
    """Return whether samples of so many tokens fit the card."""
    return memory(shapes, job, tokens).peak <= card.memory_gib * GIB


def find_switches(shapes: Shapes, job: Job, tokens: float, card: Card) -> list[str] | None:
    """Return the overrides that make a job fit; None where nothing does.

    Tried in this order, each together with those before it: fewer samples at once, activation checkpointing, shards,
    more ranks.
    """
    for changed in _changes(job):
        if fits_card(shapes, changed, tokens, card):
            return overrides(job, changed)
    return None


def _changes(job: Job) -> Iterator[Job]:
    for nodes, devices in _ranks(job):
        alone = nodes * devices == 1
        several = "ddp" if job.strategy == "one" else job.strategy
        for strategy in (job.strategy,) if alone else dict.fromkeys((several, "fsdp")):
            for recomputes in dict.fromkeys((job.recomputes, True)):
                made = replace(job, num_nodes=nodes, num_devices=devices, strategy=strategy, recomputes=recomputes)
                yield made
                for exponent in reversed(range((made.most_at_once - 1).bit_length())):
                    yield replace(made, micro_batch_size=2**exponent)


def _ranks(job: Job) -> Iterator[tuple[int, int]]:
    yield job.num_nodes, job.num_devices
    if job.num_nodes == 1:
        for devices in (2, 4, 8):
            if devices > job.num_devices:
                yield 1, devices
    nodes, devices = 2 * job.num_nodes, max(job.num_devices, 8)
    while nodes * devices <= MOST_RANKS:
        yield nodes, devices
        nodes *= 2


def overrides(before: Job, after: Job) -> list[str]:
    """Write what differs as `train` takes it."""
    written = []
    if after.num_nodes != before.num_nodes:
        written.append(f"trainer.num_nodes={after.num_nodes}")
    if after.num_devices != before.num_devices:
        written.append(f"trainer.devices={after.num_devices}")
    if after.strategy != before.strategy and after.strategy == "fsdp":
        written.append("trainer/strategy=fsdp")
    if after.recomputes != before.recomputes:
        written.append("trainer.activation_checkpointing=true")
    if after.micro_batch_size != before.micro_batch_size:
        written.append(f"micro_batch_size={after.micro_batch_size}")
    return written
