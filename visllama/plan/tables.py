"""A plan as tables, in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from visllama.machine.cards import Card
from visllama.model.flops import Flops
from visllama.plan.job import Job
from visllama.plan.lines import CONTEXT_GIB, FRAGMENTED, GIB, NCCL_GIB, Memory
from visllama.plan.speed import Rates, StepTime

_SHORT = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "show_edge": False, "title_justify": "left"}


def memory_table(job: Job, longest: Memory, mean: Memory, gpu: str, card: Card) -> Table:
    """Show what a rank holds, where it holds most; the last lines stand against the card."""
    table = Table(title=f"Memory of each of {job.num_ranks:,} rank{'s' * (job.num_ranks > 1)}", **_SHORT)
    table.add_column("*: held at the peak")
    for header in ("GiB", "mean"):
        table.add_column(header, justify="right")
    table.add_column("GiB is")
    moment = longest.moment
    usual = {line.name: line.num_bytes for line in mean.lines}
    for line in longest.lines:
        held = moment in line.moments
        cells = gib(line.num_bytes), gib(usual.get(line.name, 0)), line.formula
        table.add_row(f"{'*' if held else ' '} {line.name}", *cells, style=None if held else "dim")
    several = f" + {NCCL_GIB:g} of NCCL" if job.num_ranks > 1 else ""
    allowed = (gib(found.allowance) for found in (longest, mean))
    table.add_row("* allowance", *allowed, f"{CONTEXT_GIB:g} of CUDA{several} + {FRAGMENTED:.0%}", end_section=True)
    peaks = (gib(found.peak) for found in (longest, mean))
    table.add_row("  peak", *peaks, f"in {moment}", style="bold")
    table.add_row(f"  gpu={gpu}", gib(card.memory_gib * GIB), "", "what CUDA says there is")
    return table


def flops_table(found: Sequence[Flops]) -> Table:
    """Show a sample's arithmetic by part."""
    table = Table(title="Arithmetic of a sample of mean length, forward and backward", **_SHORT)
    table.add_column("part")
    table.add_column("GFLOP", justify="right")
    table.add_column("FLOP is")
    for part in found:
        table.add_row(part.name, f"{part.count / 1e9:,.1f}", part.formula)
    table.add_row("all", f"{sum(part.count for part in found) / 1e9:,.1f}", style="bold")
    return table


def time_table(
    steps: Sequence[StepTime],
    peaks: Sequence[int],
    card: Card,
    tokens: float,
    num_samples: int | None,
    num_steps: int | None,
) -> Table:
    """Show a step's time by the number of nodes, and what that makes of the whole.

    Args:
        steps: One each.
        peaks: Bytes of a rank, one each.
        card: What they have to fit.
        tokens: Of a sample on average.
        num_samples: Of an epoch; None is unknown.
        num_steps: Of the run; None is unknown.
    """
    table = Table(title="Time", **_SHORT | {"padding": 0})
    headers = ["nodes", "GPUs", "samples\na GPU", "tokens\na GPU", "peak\nGiB", "compute\ns", "sync\ns", "update\ns"]
    headers += ["samples\na s"]
    headers += ["epoch\nh"] * (num_samples is not None) + ["run\nh", "GPU\nh"] * (num_steps is not None)
    for header in headers:
        table.add_column(header, justify="right")
    for step, held in zip(steps, peaks, strict=True):
        job = step.job
        fits = held <= card.memory_gib * GIB
        row = [f"{job.num_nodes:,}", f"{job.num_ranks:,}", f"{job.num_samples:,}", f"{job.num_samples * tokens:,.0f}"]
        row += [gib(held) if fits else f"[red]{gib(held)}[/]"]
        row += [_three(step.compute_s, 3), _three(step.gather_s + step.reduce_s, 3), _three(step.update_s, 3)]
        row += [rate(step.samples_per_second)]
        if num_samples is not None:
            row.append(_three(num_samples / step.samples_per_second / 3600, 2))
        if num_steps is not None:
            whole = num_steps * step.seconds
            row += [_three(whole / 3600, 2), _three(whole * job.num_ranks / 3600, 2)]
        table.add_row(*row)
    return table


def time_notes(step: StepTime, rates: Rates, num_steps: int | None) -> list[str]:
    """Return what the times rest on, and what is sent."""
    job, card = step.job, rates.card
    notes = [
        f"compute: at {rates.utilisation:.0%} of {step.card_flops / 1e12:,.4g} TFLOP/s, or reading the weights at "
        f"{card.memory_gb_s:,.4g} GB/s where that takes longer" + (" (as here)." if step.is_reading else "."),
    ]
    if job.num_ranks > 1:
        sent = f"{step.reduced_bytes / 1e9:,.2f} GB of gradients"
        what = "all-reduce, 2 (n-1)/n" if job.strategy == "ddp" else "reduce-scatter, (n-1)/n"
        gathered = (
            f" and gathers {step.gathered_bytes / 1e9:,.1f} GB of weights, behind the arithmetic as far as it lasts"
            * bool(step.gathered_bytes)
        )
        notes.append(
            f"sync: a step of {job.num_ranks} ranks sends {sent} a rank ({what}){gathered}; {card.node_gb_s:,.4g} GB/s "
            f"in a node, network_gb_s={rates.network_gb_s:g} of a node between them."
        )
    if num_steps is not None:
        total = num_steps * step.seconds
        notes.append(
            f"run: {num_steps:,} steps of {job.global_batch_size:,} samples; here {total / 3600:,.2f} h, "
            f"{total * job.num_ranks / 3600:,.4g} GPU hours."
        )
    return notes


def rate(samples_per_second: float) -> str:
    """Write samples a second in six characters or so."""
    return f"{samples_per_second:,.0f}" if 100 <= samples_per_second < 1e6 else f"{samples_per_second:.3g}"


def gib(num_bytes: float) -> str:
    """Write bytes as GiB, three digits and more."""
    return f"{num_bytes / GIB:,.2f}" if num_bytes < 100 * GIB else f"{num_bytes / GIB:,.0f}"


def _three(value: float, most: int) -> str:
    """Write a number with three digits, of which at most so many stand behind the point."""
    return f"{value:,.{0 if value >= 100 else min(most, 1 if value >= 10 else 2 if value >= 1 else 3)}f}"
