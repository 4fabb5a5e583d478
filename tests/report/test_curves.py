"""The losses of several runs in one plot."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from tests.support.compared_runs import caption_evaluation, config_of, write_run
from visllama.report.curves import draw_curves, read_curves, run_labels
from visllama.report.judged_run import read_runs


def runs_of(tmp_path, *configs):
    folders = []
    for number, config in enumerate(configs):
        folders.append(write_run(tmp_path / f"run{number}", {"scenes": caption_evaluation({"CIDEr": 1.0})}, config))
    return read_runs(folders)


def test_what_was_logged_is_read_and_odd_rows_are_passed_over(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss,val/loss,lr\n1,2.5,,0.1\n2,nan,1.5,\nx,1,1,1\n3\n4,,inf,\n5,2.0,1.25,0.2,9\n")
    assert read_curves(path) == {"train/loss": [(1, 2.5), (5, 2.0)], "val/loss": [(2, 1.5), (5, 1.25)]}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a,b\n1,2\n", b'step,"val/loss\n' + b"x" * 200_000])
def test_a_file_that_holds_none_is_nothing(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    assert read_curves(tmp_path / "metrics.csv") == {} == read_curves(tmp_path / "nowhere.csv")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.csv")
    assert read_curves(tmp_path / "metrics.csv") == {}


def test_the_legend_says_what_differs(tmp_path):
    runs = runs_of(tmp_path, config_of(1, 1e-3), config_of(2, 1e-3), config_of(1, 1e-2))
    assert run_labels(runs) == ["lr=0.001, seed=1", "lr=0.001, seed=2", "lr=0.01, seed=1"]
    assert run_labels([runs[0], runs[0]]) == ["run0", "run0"]


def test_a_plot_of_many_runs_whose_names_are_formulas(tmp_path):
    configs = [config_of(seed, tag=rf"$\frac{{{seed}$ _x \q") for seed in range(1, 25)]
    runs = runs_of(tmp_path, *configs)
    assert draw_curves(tmp_path / "curves.png", runs)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and picture.size[0] > 1000


def test_without_a_curve_there_is_no_plot(tmp_path):
    runs = runs_of(tmp_path, None, None)
    assert not draw_curves(tmp_path / "curves.png", runs) and not (tmp_path / "curves.png").exists()
