"""A search through the real program, whose jobs compute a formula instead of training (`scripts/search_stub.py`)."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT
from visllama.sweep.search import _read_result

PROGRAM = ROOT / "tests" / "scripts" / "search_stub.py"
SHORT = ["evaluation=none", "name=s", "search.prune=false"]


def search(*words: str, cwd: Path, kill_at: int = 0) -> subprocess.CompletedProcess:
    """Run a search, which is killed in the job that is the `kill_at`-th."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "STUB_KILL_AT": str(kill_at)}
    command = [sys.executable, str(PROGRAM), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=200, env=environment)


def folder_of(cwd: Path) -> Path:
    (folder,) = (cwd / "outputs" / "s").iterdir()
    return folder


def ran(folder: Path) -> list[dict]:
    """Return what each job that was started was given, in the order of the starts."""
    return [json.loads(line) for line in (folder / "ran.jsonl").read_text().splitlines()]


def test_a_search_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    (tmp_path / "whole").mkdir()
    ended = search("search=tpe", "search.n_trials=5", *SHORT, cwd=tmp_path / "whole")
    assert ended.returncode == 0, ended.stderr[-3000:]
    expected = ran(folder_of(tmp_path / "whole"))

    killed = search("search=tpe", "search.n_trials=5", *SHORT, cwd=tmp_path, kill_at=3)
    assert killed.returncode == -signal.SIGKILL
    folder = folder_of(tmp_path)
    assert len(ran(folder)) == 3 and not (folder / "sweep.json").exists()

    again = search(f"resume={folder}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    jobs = ran(folder)
    values = [(job["lr"], job["warmup"]) for job in jobs]
    assert values[3] == values[2], "the trial that was killed is run again"
    assert [*values[:2], *values[3:]] == [(job["lr"], job["warmup"]) for job in expected]
    assert [job["job"] for job in jobs] == [0, 1, 2, 3, 4, 5], "each start has a folder of its own"
    sweep = json.loads((folder / "sweep.json").read_text())
    assert sorted(row["job"] for row in sweep["jobs"]) == [0, 1, 3, 4, 5]
    losses = [row["scores"]["val/loss"] for row in sweep["jobs"]]
    assert losses == sorted(losses) and (folder / "sweep.png").stat().st_size > 1000
    assert "Trial 2 was stopped, and is run again" in again.stdout
    assert "Going on with" in again.stdout and f"resume={folder}" in again.stdout

    more = search(f"resume={folder}", "search.n_trials=6", cwd=tmp_path)
    assert more.returncode == 0 and len(ran(folder)) == 7, "one trial more"


def test_values_that_take_the_search_down_three_times_are_listed_as_failed(tmp_path):
    """As a job that runs out of memory may: the search would never end."""
    search("search=tpe", "search.n_trials=2", *SHORT, cwd=tmp_path, kill_at=1)
    for start in (2, 3):
        search(f"resume={folder_of(tmp_path)}", cwd=tmp_path, kill_at=start)
    ended = search(f"resume={folder_of(tmp_path)}", cwd=tmp_path)
    assert ended.returncode == 1 and "its values were stopped 3 times" in ended.stdout
    jobs = ran(folder_of(tmp_path))
    assert len({job["lr"] for job in jobs[:3]}) == 1 and len(jobs) == 4
    sweep = json.loads((folder_of(tmp_path) / "sweep.json").read_text())
    assert [row["job"] for row in sweep["jobs"]] == [3, 2] and "error" in sweep["jobs"][1]


def test_failed_trials_are_listed_and_stop_no_others(tmp_path):
    ended = search("search=random", "search.n_trials=4", "search.ranges.optim.lr.low=0.03", *SHORT, cwd=tmp_path)
    sweep = json.loads((folder_of(tmp_path) / "sweep.json").read_text())
    failed = [row for row in sweep["jobs"] if "error" in row]
    assert len(sweep["jobs"]) == 4 and 0 < len(failed) < 4, "rates above 0.05 fail"
    assert all(row["error"] == "diverged" and row["swept"]["optim.lr"] > 0.05 for row in failed)
    assert ended.returncode == 1 and f"{len(failed)} of 4 jobs failed" in ended.stdout
    assert {job["held"] for job in ran(folder_of(tmp_path))} == {0}, "a failed job leaves its memory to the next"
    best = sweep["jobs"][0]["swept"]
    line = f"evaluation=none name=s optim.lr={best['optim.lr']} optim.warmup_fraction={best['optim.warmup_fraction']}"
    assert sweep["best"] == f"visllama train {line}"


def test_what_is_typed_is_fixed_or_searched_in_batches_and_what_mattered_is_told(tmp_path):
    words = ["optim.warmup_fraction=0.1", "model/connector=mlp,resampler", "search.batch=5", *SHORT]
    ended = search("-m", "search=random", "search.n_trials=11", *words, cwd=tmp_path)
    folder = folder_of(tmp_path)
    jobs = ran(folder)
    assert len(jobs) == 11 and {job["warmup"] for job in jobs} == {0.1}
    assert ended.stderr.count("Launching 5 jobs") + ended.stdout.count("Launching 5 jobs") == 2
    sweep = json.loads((folder / "sweep.json").read_text())
    assert {tuple(row["swept"]) for row in sweep["jobs"]} == {("optim.lr", "model/connector")}
    assert {row["swept"]["model/connector"] for row in sweep["jobs"]} == {"mlp", "resampler"}
    # Ten or more trials have to have ended well; rates above 0.05, less than a tenth of the range, fail.
    if sum("error" not in row for row in sweep["jobs"]) >= 10:
        assert sweep["importances"]["optim.lr"] > 0.5 and "What sets the jobs apart" in ended.stdout


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("search.ranges.optim.lr.low=1", "search.ranges.optim.lr: low=1 must be less than high=0.1"),
        ("search.ranges.optim.lr.low=0", "search.ranges.optim.lr.low=0: must be more than 0 with log: true"),
        (
            "+search.ranges.optim.lrr={low:1,high:2}",
            "search.ranges.optim.lrr: optim.lrr: there is no such key. Did you",
        ),
        (
            "search.ranges.optim.warmup_fraction.high=3",
            "search.ranges.optim.warmup_fraction: optim.warmup_fraction=3.0",
        ),
        ("model/connector=mlp,qformer", "search.ranges.model/connector: model/connector=qformer: there is no such"),
        ("trainer.val_check_interval=null", "nothing is measured that trials could be ranked by"),
        ("sweep=optim_lr", "sweep=optim_lr search=tpe: a grid or a search: leave one out"),
    ],
)
def test_a_wrong_search_is_refused_before_anything_runs(tmp_path, word, says):
    ended = search("search=tpe", *SHORT, word, cwd=tmp_path)
    assert ended.returncode == 2 and says in ended.stderr and "Traceback" not in ended.stderr, ended.stderr
    assert not (tmp_path / "outputs").exists()


def test_what_a_search_would_do_can_be_checked_alone(tmp_path):
    ended = search("search=tpe", *SHORT, "check_only=true", cwd=tmp_path)
    assert ended.returncode == 0 and "All checks passed: 20 trials of optim.lr, optim.warmup_fraction" in ended.stdout
    assert not (tmp_path / "outputs").exists()


def test_the_result_of_a_job_is_read_when_it_is_whole(tmp_path):
    """SLURM's jobs end also when the search is gone that waited for them."""
    assert _read_result(tmp_path) is None
    for content, expected in (("{", None), ('{"train": {}}', None)):
        (tmp_path / "metrics.json").write_text(content)
        assert _read_result(tmp_path) is expected
    (tmp_path / "metrics.json").write_text('{"train": {}, "provenance": {}}')
    assert _read_result(tmp_path) == {"train": {}, "provenance": {}}
