"""A table of runs as text for a terminal, as Markdown, and as CSV; LaTeX is in `latex.py`."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from visllama.console import printable
from visllama.markdown import escape
from visllama.markdown import table as markdown_table
from visllama.report.columns import Column
from visllama.report.latex import latex
from visllama.report.settings import ABSENT
from visllama.report.table import DAGGER, Cell, RunTable, TableRow

_BEST = "*"
_COUNT = "n"
_FILE_COLUMNS = 100


def cell_text(column: Column, cell: Cell, num_runs: int) -> str:
    """Return a figure as it is printed: its mean, its spread, and how many runs have it if not all of the row do."""
    # Not 0: a figure that was not measured is no bad figure.
    if cell.mean is None:
        return ABSENT

    figure = column.show(cell.mean)
    if cell.spread is not None:
        figure += f" ± {column.show(cell.spread)}"
    if num_runs > len(cell.values):
        figure += f" (n={len(cell.values)})"
    return figure


def count_text(row: TableRow) -> str:
    """Return the number of a row's runs; a published row has none."""
    return "" if row.is_published else str(len(row.runs))


def label_texts(row: TableRow) -> list[str]:
    """Return what sets a row apart; a published system bears its mark."""
    first, *others = row.labels
    if row.is_published:
        first = f"{first} {DAGGER}"
    return [first, *others]


def terminal_table(table: RunTable) -> Table:
    """Return the table for a terminal; a star marks the best, since a file shows no bold."""
    rendered = Table(pad_edge=False)
    for label in table.labels:
        rendered.add_column(Text(printable(label)), overflow="fold")
    rendered.add_column(_COUNT, justify="right")
    for header in table.headers:
        rendered.add_column(Text(printable(header)), justify="right", no_wrap=True)

    # `Text` objects, because rich would read square brackets in plain strings as markup.
    for row in table.rows:
        cells = [Text(printable(label)) for label in label_texts(row)]
        cells.append(Text(count_text(row)))
        for column, cell in zip(table.columns, row.cells, strict=True):
            figure = cell_text(column, cell, len(row.runs))
            if cell.is_best:
                cells.append(Text(figure + _BEST, style="bold"))
            else:
                cells.append(Text(figure))
        rendered.add_row(*cells)

    notes = list(table.notes)
    if _has_best(table):
        notes.append(f"{_BEST} the best of its column.")
    rendered.caption = Text("\n".join(map(printable, notes)))
    rendered.caption_justify = "left"
    return rendered


def text(table: RunTable) -> str:
    """Return the table as the terminal shows it, for a file."""
    file = io.StringIO()
    # A width of its own, because a file is read elsewhere than on this terminal.
    console = Console(file=file, width=_FILE_COLUMNS)
    console.print(terminal_table(table))
    return file.getvalue()


def _has_best(table: RunTable) -> bool:
    return any(cell.is_best for row in table.rows for cell in row.cells)


def markdown(table: RunTable) -> str:
    """Return the table as Markdown, its notes below."""
    header = [escape(each) for each in (*table.labels, _COUNT, *table.headers)]

    rows = []
    for row in table.rows:
        cells = [escape(label) for label in label_texts(row)]
        cells.append(count_text(row))
        for column, cell in zip(table.columns, row.cells, strict=True):
            figure = cell_text(column, cell, len(row.runs))
            cells.append(f"**{figure}**" if cell.is_best else figure)
        rows.append(cells)

    # In Markdown, two spaces at its end keep each note on a line of its own.
    notes = "\n".join(f"{escape(note)}  " for note in table.notes)
    return f"{markdown_table(header, rows)}\n\n{notes}\n"


def csv_table(table: RunTable) -> str:
    """Return the table as CSV: mean, spread and number of runs of each figure, in full, as `metrics.json` has it.

    A text that a spreadsheet would take for a formula gets a quote before it.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")

    # Three columns for each figure, so that another program can read them as numbers.
    header = [*table.labels, _COUNT, "published"]
    for column in table.columns:
        header += [f"{column.name} mean", f"{column.name} spread", f"{column.name} n"]
    writer.writerow([_as_text(each) for each in header])

    for row in table.rows:
        cells = [_as_text(label) for label in row.labels]
        cells.append(count_text(row))
        cells.append("yes" if row.is_published else "no")
        for cell in row.cells:
            cells += [_in_full(cell.mean), _in_full(cell.spread), str(len(cell.values))]
        writer.writerow(cells)
    return file.getvalue()


def _in_full(value: float | None) -> str:
    return "" if value is None else repr(value)


def _as_text(value: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    plain = printable(value)
    # The sign for "absent" is a minus, and no formula.
    is_formula = plain.startswith(("=", "+", "-", "@")) and plain != ABSENT
    return f"'{plain}" if is_formula else plain


FORMATS: dict[str, tuple[str, Callable[[RunTable], str]]] = {
    "text": ("txt", text),
    "markdown": ("md", markdown),
    "latex": ("tex", latex),
    "csv": ("csv", csv_table),
}
"""Each format's ending and writer."""
