"""A table of runs as LaTeX, with booktabs; all text of others is escaped."""

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


def escape_latex(text: object) -> str:
    """Return text for a line of LaTeX: it is shown as it stands, and runs, ends and opens nothing.

    pdfLaTeX knows few signs outside of ASCII: of Latin letters with an accent the accent is set, and what else there is
    stands as its number (U+4E2D).
    """
    line = " ".join(printable(text).split())
    return "".join(_escape_sign(sign) for sign in line)


def _escape_sign(sign: str) -> str:
    if sign in _SPECIAL:
        return _SPECIAL[sign]
    if sign.isascii():
        return sign
    letter, *marks = unicodedata.normalize("NFD", sign)
    if len(marks) == 1 and marks[0] in _ACCENTS and letter.isascii() and letter.isalpha():
        base = {"i": r"\i", "j": r"\j"}.get(letter, letter)
        return rf"\{_ACCENTS[marks[0]]}{{{base}}}"
    return f"U+{ord(sign):04X}"


def latex(table: RunTable) -> str:
    """Return the table as a LaTeX float, which a paper takes in by `\\input`; it needs the package booktabs."""
    columns = "l" * len(table.labels) + "r" * (1 + len(table.headers))
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}[t]",
        "\\centering",
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        _line([escape_latex(each) for each in (*table.labels, "n", *table.headers)]),
        "\\midrule",
    ]
    own = [row for row in table.rows if not row.is_published]
    others = [row for row in table.rows if row.is_published]
    lines += [_row(table, row) for row in own]
    if own and others:
        lines.append("\\midrule")
    lines += [_row(table, row) for row in others]
    lines += ["\\bottomrule", "\\end{tabular}"]

    notes = " ".join(escape_latex(note) for note in table.notes)
    lines += [f"\\caption{{{notes}}}", "\\end{table}"]
    return "\n".join(lines) + "\n"


def _row(table: RunTable, row: TableRow) -> str:
    first, *others = [escape_latex(label) for label in row.labels]
    if row.is_published:
        first += "$^\\dagger$"
    cells = [first, *others, "" if row.is_published else str(len(row.runs))]
    cells += [_cell(column, cell, len(row.runs)) for column, cell in zip(table.columns, row.cells, strict=True)]
    return _line(cells)


def _cell(column: Column, cell: Cell, num_runs: int) -> str:
    if cell.mean is None:
        return ABSENT
    text = column.show(cell.mean)
    if cell.is_best:
        text = f"\\textbf{{{text}}}"
    if cell.spread is not None:
        text += f" $\\pm$ {column.show(cell.spread)}"
    if num_runs > len(cell.values):
        text += f" (n={len(cell.values)})"
    return text


def _line(cells: list[str]) -> str:
    return f"{' & '.join(cells)} \\\\"
