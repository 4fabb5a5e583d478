"""The same table as text, Markdown and CSV: figures as they are, text of others as text."""

from __future__ import annotations

import csv
import io
from statistics import mean, stdev

import pytest

from visllama.report.columns import Column
from visllama.report.formats import FORMATS, csv_table, markdown, text
from visllama.report.table import Cell, RunTable, TableRow

VALUES = [1.0123456789, 1.1, 1.3]


@pytest.fixture
def table():
    """A table with a row of three runs of which two measured BLEU, a row that measured nothing, and a published one."""
    rows = [
        TableRow(["MLPConnector", "0.004"], ["a", "b", "c"], [Cell(VALUES), Cell([0.3, 0.4], True)]),
        TableRow(["=cmd|'/c'!A1", "[b]*<i>|"], ["d"], [Cell([]), Cell([])]),
        TableRow(["Paper_1", ""], [], [Cell([1.5], True), Cell([])], is_published=True),
    ]
    columns = [Column("scenes", "CIDEr", 100), Column("scenes", "BLEU-4", 100)]
    return RunTable(["connector", "lr"], ["CIDEr", "BLEU-4"], columns, rows, ["scenes: split test.", "† a"], {})


def test_text_fits_the_terminal_and_marks_the_best(table):
    lines = text(table).splitlines()
    assert max(map(len, lines)) <= 80
    shown = " ".join("\n".join(lines).split())
    assert "113.7 ± 14.7" in shown and "35.0 ± 7.1 (n=2)*" in shown and "150.0*" in shown and "Paper_1 †" in shown
    assert "[b]*<i>|" in shown and "* the best of its column." in shown
    nothing = next(line for line in lines if "=cmd" in line)
    assert nothing.split("│")[-2].strip() == "-" or nothing.split()[-1].strip("│ ") == "-"


def test_markdown_shows_text_of_others_as_it_stands(table):
    lines = markdown(table).splitlines()
    assert lines[0] == "| connector | lr | n | CIDEr | BLEU-4 |" and lines[1] == "| --- | --- | --- | --- | --- |"
    assert lines[2] == "| MLPConnector | 0.004 | 3 | 113.7 ± 14.7 | **35.0 ± 7.1 (n=2)** |"
    assert lines[3].endswith("| 1 | - | - |") and r"\[b\]\*\<i\>\|" in lines[3]
    assert lines[4] == r"| Paper\_1 † |  |  | **150.0** | - |"
    assert "scenes: split test.  " in lines


def test_csv_holds_the_figures_in_full_on_the_scale_of_the_files(table):
    rows = list(csv.DictReader(io.StringIO(csv_table(table))))
    assert float(rows[0]["scenes/CIDEr mean"]) == mean(VALUES) and float(rows[0]["scenes/CIDEr spread"]) == stdev(
        VALUES
    )
    assert rows[0]["scenes/BLEU-4 n"] == "2" and rows[0]["n"] == "3" and rows[0]["published"] == "no"
    assert rows[1]["scenes/CIDEr mean"] == "" and rows[1]["scenes/CIDEr n"] == "0"
    assert rows[2]["published"] == "yes" and rows[2]["scenes/CIDEr mean"] == "1.5"


def test_no_cell_of_csv_is_a_formula(table):
    rows = list(csv.DictReader(io.StringIO(csv_table(table))))
    assert rows[1]["connector"] == "'=cmd|'/c'!A1"


def test_every_format_has_a_file(table):
    assert {name: ending for name, (ending, _) in FORMATS.items()} == {
        "text": "txt",
        "markdown": "md",
        "latex": "tex",
        "csv": "csv",
    }
    for _, write in FORMATS.values():
        assert "Paper" in write(table)
