"""Write a table of runs as text for a terminal, as Markdown, and as CSV; LaTeX is in `latex.py`."""

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
_BEGINNINGS_OF_FORMULAS = ("=", "+", "-", "@")


def cell_text(column: Column, cell: Cell, num_runs: int) -> str:
    """Return a cell as it is printed, for example "113.4 ± 0.6 (n=2)"; "-" where no run has the figure.

    The text holds the mean, the standard deviation if two or more runs have the figure, and the number of these runs
    if other runs of the row lack the figure.

    Args:
        column: The column, whose scale and number of decimals are used.
        cell: The cell.
        num_runs: The number of runs of the cell's row.
    """
    # Not 0: a figure that was not measured is no bad figure.
    if cell.mean is None:
        return ABSENT

    figure = column.show(cell.mean)
    if cell.spread is not None:
        spread = column.show(cell.spread)
        figure += f" ± {spread}"
    num_values = len(cell.values)
    if num_runs > num_values:
        figure += f" (n={num_values})"
    return figure


def count_text(row: TableRow) -> str:
    """Return the number of a row's runs as text; "" for a row of published figures."""
    return "" if row.is_published else str(len(row.runs))


def label_texts(row: TableRow) -> list[str]:
    """Return a row's labels as texts to be printed; the first label of a published system has a dagger at its end."""
    first, *others = row.labels
    if row.is_published:
        first = f"{first} {DAGGER}"
    return [first, *others]


def terminal_table(table: RunTable) -> Table:
    """Return the table as a table of rich, its notes below, for printing on a terminal.

    The best value of each column is bold and has a star, since a file shows no bold.
    """
    rendered = Table(pad_edge=False)
    for label in table.labels:
        rendered.add_column(_plain(label), overflow="fold")
    rendered.add_column(_COUNT, justify="right")
    for header in table.headers:
        rendered.add_column(_plain(header), justify="right", no_wrap=True)

    for row in table.rows:
        cells = [_plain(label) for label in label_texts(row)]
        cells.append(Text(count_text(row)))
        num_runs = len(row.runs)
        for column, cell in zip(table.columns, row.cells, strict=True):
            figure = cell_text(column, cell, num_runs)
            if cell.is_best:
                cells.append(Text(figure + _BEST, style="bold"))
            else:
                cells.append(Text(figure))
        rendered.add_row(*cells)

    notes = [printable(note) for note in table.notes]
    if _has_best(table):
        notes.append(f"{_BEST} the best of its column.")
    rendered.caption = Text("\n".join(notes))
    rendered.caption_justify = "left"
    return rendered


def _plain(text: str) -> Text:
    """Return text for rich in which square brackets are no markup, as they would be in a plain string."""
    return Text(printable(text))


def text(table: RunTable) -> str:
    """Return the table as plain text of at most 100 characters a line, as the terminal shows it, its notes below."""
    file = io.StringIO()
    # A width of its own, because a file is read elsewhere than on this terminal.
    console = Console(file=file, width=_FILE_COLUMNS)
    console.print(terminal_table(table))
    return file.getvalue()


def _has_best(table: RunTable) -> bool:
    cells = (cell for row in table.rows for cell in row.cells)
    return any(cell.is_best for cell in cells)


def markdown(table: RunTable) -> str:
    """Return the table as Markdown, its notes below; the best value of each column is bold."""
    headers = [*table.labels, _COUNT, *table.headers]
    header = [escape(each) for each in headers]

    rows = []
    for row in table.rows:
        cells = [escape(label) for label in label_texts(row)]
        cells.append(count_text(row))
        for column, cell in zip(table.columns, row.cells, strict=True):
            figure = cell_text(column, cell, len(row.runs))
            cells.append(f"**{figure}**" if cell.is_best else figure)
        rows.append(cells)

    # In Markdown, two spaces at its end keep each note on a line of its own.
    escaped_notes = [escape(note) for note in table.notes]
    notes = "\n".join(f"{note}  " for note in escaped_notes)
    lines = markdown_table(header, rows)
    return f"{lines}\n\n{notes}\n"


def csv_table(table: RunTable) -> str:
    """Return the table as CSV with a header line, for other programs; the notes are left out.

    The first columns are the row's labels, its number of runs, and whether the row is published ("yes" or "no"). Then
    each figure has three columns: mean, standard deviation and number of runs. The values are those of `metrics.json`,
    in full and not x100; a value that is not there is empty. A text that a spreadsheet would take for a formula gets a
    quote before it.
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
            cells.append(_in_full(cell.mean))
            cells.append(_in_full(cell.spread))
            cells.append(str(len(cell.values)))
        writer.writerow(cells)
    return file.getvalue()


def _in_full(value: float | None) -> str:
    return "" if value is None else repr(value)


def _as_text(value: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    plain = printable(value)
    # The sign for "absent" is a minus, and no formula.
    is_formula = plain.startswith(_BEGINNINGS_OF_FORMULAS) and plain != ABSENT
    return f"'{plain}" if is_formula else plain


FORMATS: dict[str, tuple[str, Callable[[RunTable], str]]] = {
    "text": ("txt", text),
    "markdown": ("md", markdown),
    "latex": ("tex", latex),
    "csv": ("csv", csv_table),
}
"""For each value of `format`, the ending of its file (without a dot), and the function that returns the file's text."""
