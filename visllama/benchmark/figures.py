"""Time jobs side by side, and show each result (a figure) beside the value that is asked of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from rich.table import Table


class Figure(NamedTuple):
    """The result of one measurement.

    Attributes:
        section: The heading in the table under which the figure is shown.
        name: The key of the figure in `benchmark.json`.
        label: The name of the figure in the table.
        value: The measured value, in `unit`.
        unit: The unit of the value, as it is printed, for example "images/s"; "x" for a ratio.
        least: The value that the figure has to reach; None sets no lower bound.
        most: The value that the figure has to stay below; None sets no upper bound.
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
        """The bound as the table shows it, for example ">= 2.2" or "< 0.3"; empty if there is none."""
        if self.least is not None:
            return f">= {self.least:g}"
        return "" if self.most is None else f"< {self.most:g}"

    @property
    def is_met(self) -> bool:
        """Whether the value keeps both bounds, `least` and `most`; True where there is none."""
        is_enough = self.least is None or self.value >= self.least
        is_small_enough = self.most is None or self.value < self.most
        return is_enough and is_small_enough

    def to_dict(self) -> dict[str, object]:
        """Return the figure as `benchmark.json` holds it.

        Returns:
            A new dictionary with `value` and `unit`, and, only if the figure has a bound, `asked` (the bound as text)
            and `ok` (whether it is met).
        """
        content: dict[str, object] = {"value": self.value, "unit": self.unit}
        if self.asked:
            content["asked"] = self.asked
            content["ok"] = self.is_met
        return content


def time_in_turns(
    jobs: Mapping[str, Callable[[], int]], rounds: int, advance: Callable[[], object]
) -> dict[str, list[float]]:
    """Run jobs by turns in this process, and return the CPU seconds that each spends on an item of its work.

    In each round every job runs once, so that what else the machine does falls on all of them alike.

    Args:
        jobs: The jobs by their names. A job does its work once, and returns the number of items (images, records) that
            it has worked on, which must not be 0.
        rounds: The number of rounds that are timed. One more round comes before them, which is not timed. Each round
            begins with another job.
        advance: The function that is called without arguments after each run of a job, as for a progress bar.

    Returns:
        For each job, by its name, one number for each timed round: the CPU seconds of this process for one item.
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
    """Return how many times as fast our job is as another one, for example 2.0 if ours takes half the time.

    Args:
        ours: The seconds that our job took for one item in each round, as `time_in_turns` returns them; none is 0.
        theirs: The seconds of the other job in the same rounds.

    Returns:
        The median, over the rounds, of their seconds divided by ours.

    Raises:
        ValueError: If the two differ in length, or are empty.
    """
    # What slows a round down slows both jobs of it.
    return median(b / a for a, b in zip(ours, theirs, strict=True))


def table(title: str, figures: Sequence[Figure]) -> Table:
    """Build a table of figures for the terminal, a row each, with its bound and whether it is met.

    Args:
        title: The title of the table.
        figures: The figures in the order of the rows. A heading is added wherever the section changes.
    """
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

        # A figure without a bound can be neither met nor missed.
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
