"""Make the tables (of rich) and notes with which a plan is printed, for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from visllama.machine.cards import Card
from visllama.model.flops import Flops
from visllama.plan.job import Job
from visllama.plan.lines import CONTEXT_GIB, FRAGMENTED, GIB, NCCL_GIB, Memory
from visllama.plan.speed import Rates, StepTime


def _compact_table(title: str, padding: int | tuple[int, int, int, int] = (0, 1, 0, 0)) -> Table:
    """Return a table without rows, columns and outer frame; `padding` is that of a cell, as rich takes it."""
    return Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=padding,
        show_edge=False,
    )


def memory_table(job: Job, longest: Memory, mean: Memory, gpu: str, card: Card) -> Table:
    """Return a table of what one rank holds, in GiB, with the peak and the GPU's memory in its last two rows.

    There is one row for each line of `longest`; a star marks what is held at the peak.

    Args:
        job: How the model is trained.
        longest: Memory of a rank if all samples of a micro-batch are as long as is allowed: the column "GiB".
        mean: Memory of a rank if all samples are of mean length: the column "mean".
        gpu: Name of the GPU, for the last row.
        card: The GPU, of which the memory is shown.
    """
    has_several_ranks = job.num_ranks > 1
    ranks = "ranks" if has_several_ranks else "rank"
    table = _compact_table(f"Memory of each of {job.num_ranks:,} {ranks}")
    table.add_column("*: held at the peak")
    table.add_column("GiB", justify="right")
    table.add_column("mean", justify="right")
    table.add_column("GiB is")

    # The lines of the mean may be fewer: lines of no bytes are left out.
    mean_bytes = {line.name: line.num_bytes for line in mean.lines}
    moment = longest.moment
    for line in longest.lines:
        is_held_at_peak = moment in line.moments
        mark = "*" if is_held_at_peak else " "
        num_mean_bytes = mean_bytes.get(line.name, 0)
        table.add_row(
            f"{mark} {line.name}",
            gib(line.num_bytes),
            gib(num_mean_bytes),
            line.formula,
            style=None if is_held_at_peak else "dim",
        )

    # The allowance is no line of its own in `Memory`: it is a share of all tensors at the peak, and a constant.
    nccl = f" + {NCCL_GIB:g} of NCCL" if has_several_ranks else ""
    table.add_row(
        "* allowance",
        gib(longest.allowance),
        gib(mean.allowance),
        f"{CONTEXT_GIB:g} of CUDA{nccl} + {FRAGMENTED:.0%}",
        end_section=True,
    )
    table.add_row("  peak", gib(longest.peak), gib(mean.peak), f"in {moment}", style="bold")
    table.add_row(f"  gpu={gpu}", gib(card.memory_gib * GIB), "", "what CUDA says there is")
    return table


def flops_table(parts: Sequence[Flops]) -> Table:
    """Return a table of a sample's floating-point operations: a row for each part in the given order, then the sum."""
    table = _compact_table("Arithmetic of a sample of mean length, forward and backward")
    table.add_column("part")
    table.add_column("GFLOP", justify="right")
    table.add_column("FLOP is")

    for part in parts:
        table.add_row(part.name, f"{part.count / 1e9:,.1f}", part.formula)

    total = sum(part.count for part in parts)
    table.add_row("all", f"{total / 1e9:,.1f}", style="bold")
    return table


def time_table(
    steps: Sequence[StepTime],
    peaks: Sequence[int],
    card: Card,
    tokens: float,
    num_samples: int | None,
    num_steps: int | None,
) -> Table:
    """Return a table with a row for each of several jobs, which differ in their number of ranks: memory and times.

    Args:
        steps: Time of a step of each job.
        peaks: Peak of a rank's memory of each job in bytes, in the same order. A peak above the GPU's memory is red.
        card: The GPU.
        tokens: Mean length of a sample in tokens, its image vectors included.
        num_samples: Number of samples in an epoch; None leaves out the column with the hours of an epoch.
        num_steps: Number of steps of the run; None leaves out the columns with the hours and GPU hours of the run.

    Raises:
        ValueError: If `steps` and `peaks` differ in length.
    """
    # Nine to twelve columns stand in 80 characters: there is no room between them.
    table = _compact_table("Time", padding=0)
    headers = [
        "nodes",
        "GPUs",
        "samples\na GPU",
        "tokens\na GPU",
        "peak\nGiB",
        "compute\ns",
        "sync\ns",
        "update\ns",
        "samples\na s",
    ]
    if num_samples is not None:
        headers.append("epoch\nh")
    if num_steps is not None:
        headers.extend(["run\nh", "GPU\nh"])
    for header in headers:
        table.add_column(header, justify="right")

    for step, peak_bytes in zip(steps, peaks, strict=True):
        job = step.job

        # A job that does not fit one node may fit several, since shards become smaller: the peak is marked row by row.
        fits = peak_bytes <= card.memory_gib * GIB
        peak = gib(peak_bytes)
        if not fits:
            peak = f"[red]{peak}[/]"

        num_tokens = job.num_samples * tokens
        sync_s = step.gather_s + step.reduce_s
        row = [
            f"{job.num_nodes:,}",
            f"{job.num_ranks:,}",
            f"{job.num_samples:,}",
            f"{num_tokens:,.0f}",
            peak,
            _three(step.compute_s, 3),
            _three(sync_s, 3),
            _three(step.update_s, 3),
            rate(step.samples_per_second),
        ]
        if num_samples is not None:
            epoch_s = num_samples / step.samples_per_second
            row.append(_three(epoch_s / 3600, 2))
        if num_steps is not None:
            run_s = num_steps * step.seconds
            row.append(_three(run_s / 3600, 2))
            row.append(_three(run_s * job.num_ranks / 3600, 2))
        table.add_row(*row)
    return table


def time_notes(step: StepTime, rates: Rates, num_steps: int | None) -> list[str]:
    """Return the notes to print below the table of times, one paragraph each.

    They are: the speeds that were assumed; if there are several ranks, the bytes that each sends; if the number of
    steps is known, the hours of the run.

    Args:
        step: Time of a step of the job as configured.
        rates: The GPU, and the speeds that were assumed.
        num_steps: Number of steps of the run; None if it is unknown.
    """
    job = step.job
    card = rates.card

    # A step of few tokens waits for the weights rather than for the arithmetic, and says so.
    as_here = " (as here)" if step.is_reading else ""
    notes = [
        f"compute: at {rates.utilisation:.0%} of {step.card_flops / 1e12:,.4g} TFLOP/s, or reading the weights at "
        f"{card.memory_gb_s:,.4g} GB/s where that takes longer{as_here}.",
    ]

    if job.num_ranks > 1:
        sent = f"{step.reduced_bytes / 1e9:,.2f} GB of gradients"
        operation = "all-reduce, 2 (n-1)/n" if job.strategy == "ddp" else "reduce-scatter, (n-1)/n"
        gathered = ""
        if step.gathered_bytes:
            gathered = (
                f" and gathers {step.gathered_bytes / 1e9:,.1f} GB of weights, behind the arithmetic as far as it lasts"
            )
        notes.append(
            f"sync: a step of {job.num_ranks} ranks sends {sent} a rank ({operation}){gathered}; "
            f"{card.node_gb_s:,.4g} GB/s in a node, network_gb_s={rates.network_gb_s:g} of a node between them."
        )

    if num_steps is not None:
        run_s = num_steps * step.seconds
        hours = run_s / 3600
        gpu_hours = run_s * job.num_ranks / 3600
        notes.append(
            f"run: {num_steps:,} steps of {job.global_batch_size:,} samples; here {hours:,.2f} h, "
            f"{gpu_hours:,.4g} GPU hours."
        )
    return notes


def rate(samples_per_second: float) -> str:
    """Return a number of samples a second as text: whole from 100 to a million, else with three significant digits."""
    # Below 100 three digits say more, and beyond a million all digits would widen the column.
    if 100 <= samples_per_second < 1e6:
        return f"{samples_per_second:,.0f}"
    return f"{samples_per_second:.3g}"


def gib(num_bytes: float) -> str:
    """Return a number of bytes as text in GiB, without the unit: two decimals below 100 GiB, else none."""
    decimals = 2 if num_bytes < 100 * GIB else 0
    return f"{num_bytes / GIB:,.{decimals}f}"


def _three(value: float, max_decimals: int) -> str:
    """Return a number as text with about three digits, of which at most `max_decimals` stand behind the point."""
    if value >= 100:
        decimals = 0
    elif value >= 10:
        decimals = 1
    elif value >= 1:
        decimals = 2
    else:
        decimals = 3
    return f"{value:,.{min(max_decimals, decimals)}f}"
