"""Write a table of runs as LaTeX, with booktabs; all text of others is escaped."""

from __future__ import annotations

import unicodedata

from visllama.console import printable
from visllama.report.columns import Column
from visllama.report.settings import ABSENT
from visllama.report.table import DAGGER, Cell, RunTable, TableRow

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "*": "{*}", '"': "''", "[": "{[}", "]": "{]}",
    DAGGER: r"\textdagger{}", "±": r"$\pm$", "\u00d7": r"$\times$", "\u2013": "--", "\u2014": "---", "…": "...",
    "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}", "æ": r"\ae{}", "Æ": r"\AE{}", "ł": r"\l{}", "Ł": r"\L{}",
}  # fmt: skip
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030a": "r", "\u030c": "v",
    "\u0327": "c",
}  # fmt: skip
"""Combining marks, and the command that sets each on a letter."""
_DOTLESS = {"i": r"\i", "j": r"\j"}
"""Letters whose dot an accent would print over."""


def escape_latex(text: object) -> str:
    """Return a value as one line of LaTeX that shows it as plain text: no sign of it is read as a command.

    pdfLaTeX knows few signs outside of ASCII. A Latin letter with an accent is written as a letter and the command of
    its accent, and some other signs have a command of their own; any further sign is written as its number (U+4E2D).
    """
    words = printable(text).split()
    line = " ".join(words)
    return "".join(_escape_sign(sign) for sign in line)


def _escape_sign(sign: str) -> str:
    # First, because some of these are ASCII, and some are letters that no accent makes.
    if sign in _SPECIAL:
        return _SPECIAL[sign]
    if sign.isascii():
        return sign

    # NFD takes a letter with accents apart: "é" is "e" and a combining acute accent.
    letter, *marks = unicodedata.normalize("NFD", sign)
    is_latin = letter.isascii() and letter.isalpha()
    if is_latin and len(marks) == 1 and marks[0] in _ACCENTS:
        accent = _ACCENTS[marks[0]]
        base = _DOTLESS.get(letter, letter)
        return rf"\{accent}{{{base}}}"
    return f"U+{ord(sign):04X}"


def latex(table: RunTable) -> str:
    """Return the table as a LaTeX `table` with its notes as the caption; the best value of each column is bold.

    A paper includes a file of this text by `\\input`, and needs the package booktabs.
    """
    headers = [*table.labels, "n", *table.headers]
    num_texts = len(table.labels)
    num_numbers = len(headers) - num_texts
    alignment = "l" * num_texts + "r" * num_numbers

    header = [escape_latex(each) for each in headers]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}[t]",
        "\\centering",
        f"\\begin{{tabular}}{{{alignment}}}",
        "\\toprule",
        _line(header),
        "\\midrule",
    ]

    # A rule divides what was measured here from what others have published.
    rows_of_runs = [_row(table, row) for row in table.rows if not row.is_published]
    published_rows = [_row(table, row) for row in table.rows if row.is_published]
    lines += rows_of_runs
    if rows_of_runs and published_rows:
        lines.append("\\midrule")
    lines += published_rows
    lines += ["\\bottomrule", "\\end{tabular}"]

    notes = " ".join(escape_latex(note) for note in table.notes)
    lines += [f"\\caption{{{notes}}}", "\\end{table}"]
    text = "\n".join(lines)
    return f"{text}\n"


def _row(table: RunTable, row: TableRow) -> str:
    first, *others = [escape_latex(label) for label in row.labels]
    num_runs = len(row.runs)
    count = str(num_runs)
    # Over how many runs a published figure is a mean is not known.
    if row.is_published:
        first += "$^\\dagger$"
        count = ""

    cells = [first, *others, count]
    for column, cell in zip(table.columns, row.cells, strict=True):
        text = _cell(column, cell, num_runs)
        cells.append(text)
    return _line(cells)


def _cell(column: Column, cell: Cell, num_runs: int) -> str:
    if cell.mean is None:
        return ABSENT

    text = column.show(cell.mean)
    if cell.is_best:
        text = f"\\textbf{{{text}}}"
    if cell.spread is not None:
        spread = column.show(cell.spread)
        text += f" $\\pm$ {spread}"
    num_values = len(cell.values)
    if num_runs > num_values:
        text += f" (n={num_values})"
    return text


def _line(cells: list[str]) -> str:
    row = " & ".join(cells)
    return f"{row} \\\\"
