"""Figures: timed in turns, shown beside what is asked of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from rich.table import Table


class Figure(NamedTuple):
    """One thing measured.

    Attributes:
        section: Under which it is shown.
        name: In `benchmark.json`.
        label: For a person.
        value: In `unit`.
        unit: "x" for a ratio.
        least, most: What is asked of it; None is nothing.
    """

    section: str
    name: str
    label: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None

    @property
    def asked(self) -> str:
        """Return what is asked of the figure."""
        if self.least is not None:
            return f">= {self.least:g}"
        return "" if self.most is None else f"< {self.most:g}"

    @property
    def is_met(self) -> bool:
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value < self.most)

    def to_dict(self) -> dict[str, object]:
        judged = {"asked": self.asked, "ok": self.is_met} if self.asked else {}
        return {"value": self.value, "unit": self.unit} | judged


def time_in_turns(
    jobs: Mapping[str, Callable[[], int]], rounds: int, advance: Callable[[], object]
) -> dict[str, list[float]]:
    """Time jobs side by side, so that what else the machine does falls on all of them.

    Args:
        jobs: By name; each does its work once, and gives how many items that were.
        rounds: How often each runs, after once that does not count. Who is first changes from round to round.
        advance: Called after each run.

    Returns:
        CPU seconds an item, of each round: waiting for other programs does not count, and there is one thread.
    """
    names, taken = list(jobs), {name: [] for name in jobs}
    for number in range(-1, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            began = time.process_time()
            items = jobs[name]()
            spent = (time.process_time() - began) / items
            if number >= 0:
                taken[name].append(spent)
            advance()
    return taken


def faster(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return how many times as fast ours is: the median over rounds, each compared in itself."""
    return median(b / a for a, b in zip(ours, theirs, strict=True))


def table(title: str, figures: Sequence[Figure]) -> Table:
    """Show figures, section by section."""
    shown = Table("measure", title=title)
    for header in ("value", "asked"):
        shown.add_column(header, justify="right", no_wrap=True)
    shown.add_column("")
    section = ""
    for figure in figures:
        if figure.section != section:
            section = figure.section
            shown.add_section()
            shown.add_row(f"[bold]{section}[/]")
        verdict = "" if not figure.asked else "ok" if figure.is_met else "[red]missed[/]"
        shown.add_row(f"  {figure.label}", f"{_plain(figure.value)} {figure.unit}", figure.asked, verdict)
    return shown


def _plain(value: float) -> str:
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"
