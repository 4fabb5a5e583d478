"""Make the tables that `report` prints when it compares two runs, one for each evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from visllama.console import printable
from visllama.report.judged_run import JudgedRun
from visllama.report.page import rows_of, scale_of
from visllama.report.paired import Comparison


def comparison_table(comparison: Comparison) -> Table:
    """Return a table for the terminal, a row for each metric: both values, their difference, its interval and p-value.

    The columns A and B are the first and the second run; metrics of captions are x100. Lines below the table name the
    conditions under which the runs were judged differently, and the metrics that one run lacks.
    """
    table = Table("metric", title=Text(printable(_title(comparison))))
    for header in ("A", "B", "B - A", "95% interval", "p"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows_of(comparison):
        # A narrow column breaks lines at spaces alone.
        metric = printable(row.metric).replace("_", " ")
        table.add_row(Text(metric), row.first, row.second, row.difference, row.interval, row.p)

    notes = [printable(note) for note in _notes(comparison)]
    if notes:
        table.caption = Text("\n".join(notes))
    return table


def _title(comparison: Comparison) -> str:
    """Return the evaluation's name, the numbers of rows and images, and the scale of the scores, as a title."""
    num_rows = comparison.num_rows
    num_images = comparison.num_images
    title = f"{comparison.pair.name}: n = {num_rows:,}"
    # Where an image has several questions, both numbers matter: the bootstrap draws images.
    if num_images != num_rows:
        title += f" on {num_images:,} images"

    scale = scale_of(comparison.task)
    if scale != 1:
        title += f" (x{scale})"
    return title


def _notes(comparison: Comparison) -> list[str]:
    """Return the conditions that differ, and the metrics that one run lacks, as sentences."""
    notes = []
    for condition, values in comparison.mixed.items():
        parts = [f"{value} in {run}" for run, value in values.items()]
        listed_values = ", ".join(parts)
        notes.append(f"not judged alike: {condition}: {listed_values}")

    for run, names in comparison.lacking.items():
        listed_names = ", ".join(names)
        notes.append(f"{run} has no {listed_names}")
    return notes


def names_of(runs: Sequence[JudgedRun]) -> str:
    """Return two lines of text that name the folders of the runs A and B.

    Args:
        runs: Exactly two runs, A first.
    """
    first, second = runs
    first_folder = printable(first.folder)
    second_folder = printable(second.folder)
    return f"A = {first_folder}\nB = {second_folder}"
