"""Searches of real runs on the embedded world: killed and continued, pruned, on several ranks, and in SLURM's queue."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.runs import RUN, finish, kill, start
from tests.support.slurm_cluster import Slurm

pytestmark = [pytest.mark.slow, pytest.mark.proof]  # minutes: test_search.py has the same on a stub
# Six steps with three validations, and a judgement of eight captions.
SHORT = [word for word in RUN if not word.startswith(("judge", "data.log_consumed", "trainer.val_check_interval"))]
SHORT += ["trainer.max_steps=6", "trainer.val_check_interval=2", "evaluation.scenes_caption.source.num_records=8",
          "evaluation.scenes_caption.metrics=[CIDEr]", "evaluation.scenes_caption.controls=[]", "name=s"]  # fmt: skip
# A rate that learns nothing is behind the median of the others, and is ended. With this seed three of the first five
# trials, which are never ended, learn, and the other two do not.
PRUNED = ["search=random", "search.n_trials=7", "optim.lr=1e-2,1e-9", "objective=val/loss", "seed=4"]
PRUNED += ["optim.warmup_fraction=0"]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_search_that_was_killed_goes_on_prunes_and_judges_the_best_alone(tmp_path):
    outputs = f"paths.outputs={tmp_path}"
    process = start(*PRUNED, *SHORT, outputs)
    until = time.monotonic() + 300
    while not list(tmp_path.glob("s/*/2/metrics.csv")):  # the third job trains
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0][-3000:]
        time.sleep(0.05)
    kill(process)
    (folder,) = (tmp_path / "s").iterdir()
    ended = [read(folder / job / "metrics.json")["train"] for job in ("0", "1")]

    said = finish("resume=last", outputs)

    assert "is run again: optim.lr=" in said and "Going on with" in said
    assert ended == [read(folder / job / "metrics.json")["train"] for job in ("0", "1")], "they did not run again"
    sweep = read(folder / "sweep.json")
    assert len(sweep["jobs"]) == 7 and 2 not in [row["job"] for row in sweep["jobs"]]
    pruned = [row for row in sweep["jobs"] if "pruned_step" in row]
    assert pruned and all(row["swept"]["optim.lr"] == 1e-9 and row["pruned_step"] == 4 for row in pruned)
    best = sweep["jobs"][0]
    assert best["swept"]["optim.lr"] == 1e-2 and "callbacks" not in sweep["best"] and "search=" not in sweep["best"]
    for row in sweep["jobs"]:
        metrics = read(Path(row["folder"]) / "metrics.json")
        expected = {"scenes_caption_val"}
        if row in pruned:
            expected = set()
        elif row is best:
            expected = {"scenes_caption_val", "scenes_caption"}
        assert set(metrics["evaluations"]) == expected, "test is for the best alone; what was pruned is not judged"
        assert metrics["train"]["steps"] == (4 if row in pruned else 6)


def test_all_ranks_of_a_trial_end_with_it_and_are_judged_on_validation(tmp_path):
    """The first rank asks; were the other to go on by itself, each would wait for the other."""
    said = finish(*PRUNED, "trainer.devices=2", *SHORT, f"paths.outputs={tmp_path}")
    (folder,) = (tmp_path / "s").iterdir()
    jobs = read(folder / "sweep.json")["jobs"]
    assert len(jobs) == 7 and any("pruned_step" in row for row in jobs) and not any("error" in row for row in jobs)
    metrics = read(Path(jobs[0]["folder"]) / "metrics.json")
    assert metrics["provenance"]["num_ranks"] == 2 and metrics["evaluations"]["scenes_caption_val"]["n"] == 8
    assert "Pruned: val/loss is behind" in said


def test_a_search_in_slurms_queue_asks_for_several_trials_at_once(tmp_path):
    words = ["launch=slurm", "trainer.num_nodes=1", "trainer.devices=1", "hydra.launcher.gpus_per_node=null",
             "search=tpe", "search.n_trials=3", "search.batch=2", "judge=false"]  # fmt: skip
    with Slurm(tmp_path / "slurm") as slurm:
        command = [sys.executable, "-m", "visllama", "train", *words, *SHORT, f"paths.outputs={tmp_path}"]
        ended = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | slurm.environment, timeout=400
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        arrays = [read(file)["options"].get("array") for file in slurm.folder.glob("*.json")]
    assert set(arrays) == {"0-1%2", None}, "two side by side, then the third"
    (folder,) = (tmp_path / "s").iterdir()
    sweep = read(folder / "sweep.json")
    assert sorted(row["job"] for row in sweep["jobs"]) == [0, 1, 2]
    assert all(row["scores"]["val/loss"] for row in sweep["jobs"])
    journal = (folder / "search.journal").read_text()
    assert journal.count('"intermediate_value"') >= 9, "each of three jobs has reported its three validations"
