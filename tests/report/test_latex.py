"""A table as LaTeX: its figures are those of the table, and no text of others is a command."""

from __future__ import annotations

import re

import pytest

from tests.support.pdflatex import compile_table, needs_pdflatex
from visllama.report.columns import Column
from visllama.report.latex import escape_latex, latex
from visllama.report.table import Cell, RunTable, TableRow

NASTY = [
    "\\input{/etc/passwd}", "}\\end{table}", "a_b^c~d%e&f#g$h$", "[1pt]", "*", "<a|b>", '"quoted"', "é ñ ü Ł ř ï",
    "中文 🙂", "--- `x' ?` ^^41", "\\\\", "\x1b[0m",
]  # fmt: skip


@pytest.fixture
def table():
    rows = [TableRow([nasty], ["a", "b"], [Cell([1.25, 1.35], number == 0)]) for number, nasty in enumerate(NASTY)]
    rows.append(TableRow(["Paper & Co"], [], [Cell([0.5])], is_published=True))
    rows.append(TableRow(["none"], ["a"], [Cell([])]))
    column = Column("scenes", "CIDEr", 100)
    return RunTable(["#1_key"], ["CIDEr_%"], [column], rows, [*NASTY, "† Paper: ± 3"], {})


def test_a_table_of_booktabs(table):
    lines = latex(table).splitlines()
    assert [line for line in lines if line.endswith("rule")] == ["\\toprule", "\\midrule", "\\midrule", "\\bottomrule"]
    assert "\\begin{tabular}{lrr}" in lines and "\\#1\\_key & n & CIDEr\\_\\% \\\\" in lines
    assert lines[7].endswith("& 2 & \\textbf{130.0} $\\pm$ 7.1 \\\\")
    assert "none & 1 & - \\\\" in lines
    assert lines.index("Paper \\& Co$^\\dagger$ &  & 50.0 \\\\") > lines.index("none & 1 & - \\\\"), (
        "published ones last"
    )


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a_b", r"a\_b"),
        ("\\input{x}", r"\textbackslash{}input\{x\}"),
        ("[*]", "{[}{*}{]}"),
        ("é", r"\'{e}"),
        ("ï", r"\"{\i}"),
        ("中", "U+4E2D"),
        ("a\n b", "a b"),
    ],
)
def test_text_is_escaped(text, written):
    assert escape_latex(text) == written


def test_nothing_that_latex_would_run_is_left(table):
    """What begins with a backslash is what we write ourselves, and braces are balanced."""
    written = latex(table)
    commands = set(re.findall(r"\\([A-Za-z]+)", written))
    assert commands <= {
        "usepackage", "begin", "end", "centering", "toprule", "midrule", "bottomrule", "caption", "textbf", "pm",
        "dagger", "textdagger", "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater",
        "textbar", "L", "i", "v",
    }  # fmt: skip
    plain = written.replace("\\\\", "").replace("\\{", "").replace("\\}", "")
    assert plain.count("{") == plain.count("}")


@pytest.mark.slow
@needs_pdflatex
def test_it_compiles_whatever_the_text(table, tmp_path):
    assert compile_table(latex(table), tmp_path).stat().st_size > 5000
