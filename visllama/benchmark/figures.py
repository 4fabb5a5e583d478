"""Figures: jobs are timed in turns, and each figure is shown beside what is asked of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from rich.table import Table


class Figure(NamedTuple):
    """The result of one measurement.

    Attributes:
        section: The heading under which it is shown.
        name: The key of the figure in `benchmark.json`.
        label: The name of the figure in the table.
        value: The value, in `unit`.
        unit: The unit of the value; "x" for a ratio.
        least: The least value that is asked for; None asks for nothing.
        most: The value that it has to stay below; None asks for nothing.
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
        """What is asked of the figure, as the table shows it; empty if nothing is."""
        if self.least is not None:
            return f">= {self.least:g}"
        return "" if self.most is None else f"< {self.most:g}"

    @property
    def is_met(self) -> bool:
        """Whether the value is as it is asked for."""
        is_enough = self.least is None or self.value >= self.least
        is_small_enough = self.most is None or self.value < self.most
        return is_enough and is_small_enough

    def to_dict(self) -> dict[str, object]:
        """Return the figure as `benchmark.json` holds it."""
        content: dict[str, object] = {"value": self.value, "unit": self.unit}
        if self.asked:
            content["asked"] = self.asked
            content["ok"] = self.is_met
        return content


def time_in_turns(
    jobs: Mapping[str, Callable[[], int]], rounds: int, advance: Callable[[], object]
) -> dict[str, list[float]]:
    """Time jobs side by side, so that what else the machine does falls on all of them.

    Args:
        jobs: The jobs by their names; each does its work once, and returns the number of items of that work.
        rounds: The number of rounds in which each job runs, after a first one that does not count. The order of the
            jobs changes from round to round.
        advance: The function that is called after each run.

    Returns:
        For each job, the CPU seconds of an item in each round: waiting for other programs does not count.
    """
    names = list(jobs)
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(-1, rounds):
        # The round -1 fills caches, and does not count.
        is_timed = number >= 0
        first = number % len(names)
        for name in names[first:] + names[:first]:
            started = time.process_time()
            num_items = jobs[name]()
            spent = (time.process_time() - started) / num_items
            if is_timed:
                seconds[name].append(spent)
            advance()
    return seconds


def faster(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return how many times as fast ours is: the median of the rounds' ratios."""
    # What slows a round down slows both jobs of it.
    return median(b / a for a, b in zip(ours, theirs, strict=True))


def table(title: str, figures: Sequence[Figure]) -> Table:
    """Return the table of figures, section by section."""
    result = Table("measure", title=title)
    for header in ("value", "asked"):
        result.add_column(header, justify="right", no_wrap=True)
    result.add_column("")

    section = ""
    for figure in figures:
        if figure.section != section:
            section = figure.section
            result.add_section()
            result.add_row(f"[bold]{section}[/]")

        verdict = ""
        if figure.asked:
            verdict = "ok" if figure.is_met else "[red]missed[/]"
        result.add_row(f"  {figure.label}", f"{_plain(figure.value)} {figure.unit}", figure.asked, verdict)
    return result


def _plain(value: float) -> str:
    """Return a value with about three digits."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:,.1f}"
    if value >= 1:
        return f"{value:,.2f}"
    return f"{value:,.3f}"
