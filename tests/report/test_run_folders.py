"""Which folders `runs=` means."""

from __future__ import annotations

import pytest

from visllama.errors import ConfigError
from visllama.report.run_folders import find_folders


@pytest.fixture
def outputs(tmp_path):
    """A folder with eleven runs, one that has not ended, a sweep of three jobs, and a file."""
    for number in range(11):
        (tmp_path / f"run{number}").mkdir()
        (tmp_path / f"run{number}" / "metrics.json").write_text("{}")
    (tmp_path / "killed").mkdir()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").write_text("")
    for job in ("0", "1", "10", "2"):
        (tmp_path / "sweep" / job).mkdir()
        if job != "1":
            (tmp_path / "sweep" / job / "metrics.json").write_text("{}")
    (tmp_path / "index.html").write_text("")
    return tmp_path


def names(folders):
    return [folder.name for folder in folders]


def test_a_pattern_is_all_runs_that_it_matches_in_the_order_of_their_numbers(outputs):
    assert names(find_folders([f"{outputs}/run*"])) == [f"run{number}" for number in range(11)]


def test_the_folder_of_a_sweep_is_its_jobs_that_have_ended(outputs):
    assert names(find_folders([f"{outputs}/sweep"])) == ["0", "2", "10"]
    assert len(find_folders([f"{outputs}/*"])) == 14


def test_a_pattern_adds_what_is_not_named_yet_and_what_is_named_twice_is_twice(outputs):
    assert names(find_folders([f"{outputs}/run3", f"{outputs}/run[23]"])) == ["run3", "run2"]
    assert names(find_folders([f"{outputs}/run3"] * 2)) == ["run3", "run3"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("nowhere", "no such folder"),
        ("killed", r"holds no metrics\.json"),
        ("no*", "it matches nothing"),
        ("k*", r"none of its 1 matches holds a metrics\.json"),
        ("index.html", "no such folder"),
    ],
)
def test_what_is_no_run_is_refused(outputs, word, says):
    with pytest.raises(ConfigError, match=says):
        find_folders([f"{outputs}/run1", f"{outputs}/{word}"])


def test_a_folder_whose_name_looks_like_a_pattern_is_itself(tmp_path):
    (tmp_path / "a[1]").mkdir()
    (tmp_path / "a[1]" / "metrics.json").write_text("{}")
    assert names(find_folders([f"{tmp_path}/a[1]"])) == ["a[1]"]
