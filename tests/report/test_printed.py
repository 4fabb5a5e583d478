"""What is printed of two runs."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from tests.support.compared_runs import asked_run, captioned_run
from visllama.report.judged_run import read_runs
from visllama.report.paired import compare, read_pair, shared_evaluations
from visllama.report.printed import comparison_table, names_of


def printed(runs, mixed=False):
    pair = shared_evaluations(*runs, None)[0]
    comparison = compare(read_pair(*runs, pair, mixed), runs[0].name, runs[1].name)
    file = io.StringIO()
    Console(file=file, width=200).print(comparison_table(comparison))
    return file.getvalue()


def test_a_table_of_eighty_columns(tmp_path):
    captioned_run(tmp_path / "a", np.full(4, 10.0))
    captioned_run(tmp_path / "b", np.zeros(4))
    shown = printed(read_runs([tmp_path / "a", tmp_path / "b"]))
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert "scenes: n = 4 (x100)" in shown
    row = next(line for line in shown.splitlines() if "CIDEr" in line)
    assert [word for word in row.split() if word not in "│"] == [
        "CIDEr", "1000.0", "0.0", "-1000.00", "-1000.00", "to", "-1000.00", row.split()[-2]
    ]  # fmt: skip


def test_answers_are_on_their_own_scale(tmp_path):
    asked_run(tmp_path / "a", [1, 0, 1], ["i", "i", "j"], ["x"] * 3)
    shown = printed(read_runs([tmp_path / "a", tmp_path / "a"]))
    assert "vqa: n = 3 on 2 images" in shown and "66.7" in shown and "x100" not in shown


def test_what_was_judged_otherwise_is_told(tmp_path):
    captioned_run(tmp_path / "a", [1.0, 2.0])
    captioned_run(tmp_path / "b", [1.0, 2.0], split="val")
    runs = read_runs([tmp_path / "a", tmp_path / "b"])
    assert "not judged alike: split: test in a, val in b" in printed(runs, mixed=True)
    assert names_of(runs) == f"A = {tmp_path / 'a'}\nB = {tmp_path / 'b'}"
