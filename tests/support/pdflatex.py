"""pdfLaTeX, where it is there (`apt-get install texlive-latex-base texlive-latex-recommended`)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PDFLATEX = shutil.which("pdflatex")
needs_pdflatex = pytest.mark.skipif(PDFLATEX is None, reason="pdflatex is not installed")
_DOCUMENT = """\\documentclass{article}
\\usepackage[T1]{fontenc}
\\usepackage{booktabs}
\\begin{document}
\\input{table}
\\end{document}
"""


def compile_table(table: str, folder: Path) -> Path:
    """Compile a document that takes in a table, with no access to a shell; return the PDF."""
    (folder / "table.tex").write_text(table, encoding="utf-8")
    (folder / "paper.tex").write_text(_DOCUMENT)
    command = [PDFLATEX, "-no-shell-escape", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120)
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert "Missing character" not in ended.stdout
    return folder / "paper.pdf"
