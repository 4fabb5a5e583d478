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
    """Return a figure as it is printed: mean, spread, and of how many runs where that is not all of its row's."""
    if cell.mean is None:
        return ABSENT
    shown = column.show(cell.mean)
    if cell.spread is not None:
        shown += f" ± {column.show(cell.spread)}"
    if num_runs > len(cell.values):
        shown += f" (n={len(cell.values)})"
    return shown


def count_text(row: TableRow) -> str:
    """Return the number of a row's runs; a published row has none."""
    return "" if row.is_published else str(len(row.runs))


def label_texts(row: TableRow) -> list[str]:
    """Return what sets a row apart; a published system bears its mark."""
    first, *others = row.labels
    return [f"{first} {DAGGER}" if row.is_published else first, *others]


def terminal_table(table: RunTable) -> Table:
    """Return the table for a terminal; a star marks the best, since a file shows no bold."""
    shown = Table(pad_edge=False)
    for label in table.labels:
        shown.add_column(Text(printable(label)), overflow="fold")
    shown.add_column(_COUNT, justify="right")
    for header in table.headers:
        shown.add_column(Text(printable(header)), justify="right", no_wrap=True)
    for row in table.rows:
        cells = [Text(printable(label)) for label in label_texts(row)]
        cells.append(Text(count_text(row)))
        for column, cell in zip(table.columns, row.cells, strict=True):
            figure = cell_text(column, cell, len(row.runs))
            cells.append(Text(figure + _BEST, style="bold") if cell.is_best else Text(figure))
        shown.add_row(*cells)
    notes = [*table.notes, f"{_BEST} the best of its column."] if _has_best(table) else table.notes
    shown.caption = Text("\n".join(map(printable, notes)))
    shown.caption_justify = "left"
    return shown


def text(table: RunTable) -> str:
    """Return the table as the terminal shows it, for a file."""
    file = io.StringIO()
    Console(file=file, width=_FILE_COLUMNS).print(terminal_table(table))
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
    notes = "\n".join(f"{escape(note)}  " for note in table.notes)
    return f"{markdown_table(header, rows)}\n\n{notes}\n"


def csv_table(table: RunTable) -> str:
    """Return the table as CSV: mean, spread and number of runs of each figure, in full, as `metrics.json` has it.

    A text that a spreadsheet would take for a formula gets a quote before it.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = [f"{column.name} {what}" for column in table.columns for what in ("mean", "spread", "n")]
    writer.writerow([_as_text(each) for each in (*table.labels, _COUNT, "published", *names)])
    for row in table.rows:
        cells: list[object] = [_as_text(label) for label in row.labels]
        cells += [count_text(row), "yes" if row.is_published else "no"]
        for cell in row.cells:
            cells += [
                "" if cell.mean is None else repr(cell.mean),
                "" if cell.spread is None else repr(cell.spread),
                str(len(cell.values)),
            ]
        writer.writerow(cells)
    return file.getvalue()


def _as_text(value: str) -> str:
    plain = printable(value)
    is_formula = plain.startswith(("=", "+", "-", "@")) and plain != ABSENT
    return f"'{plain}" if is_formula else plain


FORMATS: dict[str, tuple[str, Callable[[RunTable], str]]] = {
    "text": ("txt", text),
    "markdown": ("md", markdown),
    "latex": ("tex", latex),
    "csv": ("csv", csv_table),
}
"""Each format's ending and writer."""
