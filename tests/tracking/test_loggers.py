"""What the loggers of a run are given, and that they end with it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.commands import ROOT
from tests.support.wandb_files import read_wandb_run, read_wandb_runs
from visllama.tracking.results import flat_scores

SHORT = [
    "trainer=cpu", "trainer.max_steps=4", "stage.global_batch_size=8", "data.num_val_records=8", "trainer.log_every_steps=1",
    "evaluation.scenes_caption.source.num_records=12", "evaluation.scenes_caption.metrics=[CIDEr]", "logger=wandb",
]  # fmt: skip
BREAKS = """
from lightning.pytorch.callbacks import Callback


class Breaks(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            raise RuntimeError("broken here")
"""


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *SHORT, *overrides],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        # A person's process heeds Ctrl-C; where the tests run in the background, theirs would not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0][-2000:]
        time.sleep(0.05)


@pytest.mark.slow
def test_each_job_of_a_sweep_has_a_run_of_its_own(tmp_path):
    sweep = start(tmp_path, "name=two", "-m", "seed=1,2")
    said = sweep.communicate(timeout=300)[0]
    assert sweep.returncode == 0, said[-2000:]
    folders = [next(tmp_path.glob(f"outputs/two/*/{job}")) for job in range(2)]
    first, second = map(read_wandb_run, folders)
    assert [first.name, second.name] == ["two seed=1", "two seed=2"] and first.run_id != second.run_id
    for seed, folder, run in ((1, folders[0], first), (2, folders[1], second)):
        assert (run.group, run.tags, run.exit_code) == ("two", ["pretrain", "scenes"], 0)
        assert run.config["seed"] == seed
        scores = flat_scores(json.loads((folder / "metrics.json").read_text())["evaluations"])
        assert len(scores) == 3 and scores.items() <= run.summary.items()
        with open(folder / "metrics.csv") as file:
            losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
        assert [row["train/loss"] for row in run.rows if "train/loss" in row] == pytest.approx(losses)
        assert len(losses) == 4


@pytest.mark.slow
def test_the_best_job_of_a_sweep_is_given_its_scores_on_test_too(tmp_path):
    sweep = start(tmp_path, "name=lr", "-m", "optim.lr=1e-4,4e-3")
    said = sweep.communicate(timeout=300)[0]
    assert sweep.returncode == 0, said[-2000:]
    jobs = [read_wandb_runs(next(tmp_path.glob(f"outputs/lr/*/{job}"))) for job in range(2)]
    (other,), (first, second) = sorted(jobs, key=len)
    assert first.run_id == second.run_id != other.run_id
    assert "scenes_caption/CIDEr" in second.summary and "scenes_caption/blank_images/CIDEr" in second.summary
    assert "scenes_caption/CIDEr" not in first.summary | other.summary and "scenes_caption_val/CIDEr" in first.summary
    assert [run.exit_code for run in (other, first, second)] == [0, 0, 0]


@pytest.mark.slow
def test_a_run_that_breaks_is_finished_as_failed(tmp_path):
    (tmp_path / "breaks.py").write_text(BREAKS)
    process = start(tmp_path, "hydra.run.dir=run", "plugins=[breaks]", "+callbacks.breaks._target_=breaks.Breaks")
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "broken here" in said
    assert read_wandb_run(tmp_path / "run").exit_code == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "phase"), [(signal.SIGINT, "training"), (signal.SIGTERM, "training"), (signal.SIGTERM, "judging")]
)
def test_a_run_that_is_told_to_leave_is_finished_and_can_go_on(tmp_path, number, phase):
    more = ["trainer.max_steps=400", "trainer.checkpoint_every_steps=5"] if phase == "training" else []
    process = start(tmp_path, "hydra.run.dir=run", *more)
    begun = "checkpoints/step_00000005/COMPLETE" if phase == "training" else "weights/visllama.json"
    wait_for(tmp_path / "run" / begun, process)
    os.killpg(process.pid, number)  # as a terminal sends Ctrl-C, to all that belongs to the run
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 143, said[-2000:]
    assert ("It goes on by:" in said) == (phase == "training")
    assert "Traceback" not in said, said[-2000:]
    run = read_wandb_run(tmp_path / "run")
    assert run.exit_code == 143 and [row for row in run.rows if "train/loss" in row]
