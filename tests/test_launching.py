"""Ranks however they are started: by srun from a batch script, by torchrun, by a sweep, by a sweep in SLURM's queue.

SLURM is a stand-in (`tests/support/slurm_cluster.py`): its programs' options, variables, signals and exit codes, no cluster.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.support.commands import ROOT
from tests.support.slurm_cluster import Slurm

SBATCH = re.search(
    r"```sh\n(#!/bin/bash.*?)```", (ROOT / "visllama" / "training" / "README.md").read_text(), re.DOTALL
)[1]
SMALL = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.threads=1", "judge=false", "trainer.val_check_interval=null",
         "stage.global_batch_size=16", "trainer.log_every_steps=1"]  # fmt: skip


def weights_of(run: Path) -> dict:
    return load_file(run / "weights" / "visllama.safetensors")


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def command(*words: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *words]


class Batch:
    """The batch script of the page on a cluster of two nodes with one CPU each, where what the job says is kept."""

    def __init__(self, folder: Path, slurm: Slurm) -> None:
        self.folder, self.slurm, self.script = folder, slurm, folder / "job.sh"
        self.script.write_text(SBATCH)
        for name in ("train.py", "conf", "visllama"):
            (folder / name).symlink_to(ROOT / name)

    def submit(self, *overrides: str) -> str:
        """Return the number of the job."""
        options = ["--nodes=2", "--ntasks-per-node=1"]
        ended = self.slurm.call("sbatch", *options, str(self.script), *SMALL, *overrides, cwd=self.folder)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.split()[-1]

    def said(self, job: str) -> str:
        log = self.folder / f"visllama-{job}.log"
        return log.read_text() if log.exists() else ""

    def wait(self, job: str, until, timeout: float = 180) -> None:
        give_up = time.monotonic() + timeout
        while not until():
            assert time.monotonic() < give_up, self.said(job)[-3000:]
            time.sleep(0.05)

    def end(self, job: str) -> list[list[int]]:
        """Wait for a job's end; gives the exit codes of its ranks, of each start."""
        self.wait(job, (self.slurm.folder / f"{job}.code").exists)
        return [json.loads(line) for line in (self.slurm.folder / f"{job}.codes").read_text().splitlines()]


@pytest.fixture
def batch(tmp_path):
    with Slurm(tmp_path / "slurm") as slurm:
        yield Batch(tmp_path, slurm)


STEPS = 24


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Run the batch script from its start to its end; the job's number, the run folders, what was said."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with Slurm(folder / "slurm") as slurm:
        batch = Batch(folder, slurm)
        job = batch.submit(f"trainer.max_steps={STEPS}")
        assert batch.end(job) == [[0, 0]], batch.said(job)[-3000:]
        assert slurm.calls("scontrol") == []
        return job, sorted((folder / "outputs" / "X").iterdir()), batch.said(job)


@pytest.mark.slow
def test_the_batch_script_makes_one_run_under_the_jobs_number(uninterrupted):
    job, runs, said = uninterrupted
    assert [run.name for run in runs] == [job]
    assert said.count("Wrote ") == 1 and said.count("2 ranks,") == 1, "one rank speaks"
    assert (runs[0] / "log.txt").read_text().count("2 ranks,") == 1
    facts = json.loads((runs[0] / "metrics.json").read_text())
    assert facts["provenance"]["num_ranks"] == 2 and facts["train"]["steps"] == STEPS
    overrides = yaml.safe_load((runs[0] / ".hydra" / "overrides.yaml").read_text())
    assert "trainer=cluster" in overrides and "trainer.accelerator=cpu" in overrides


@pytest.mark.slow
def test_a_job_near_its_time_limit_goes_on_in_its_next_start(batch, uninterrupted):
    job = batch.submit(f"trainer.max_steps={STEPS}")
    run = batch.folder / "outputs" / "X" / job
    rows = run / "metrics.csv"
    batch.wait(job, lambda: rows.exists() and rows.read_text().count("\n") > 3)
    assert batch.slurm.call("scancel", "--signal=USR1", job).returncode == 0  # as --signal=USR1@120 does
    starts = batch.end(job)
    assert starts == [[143, 143], [0, 0]], batch.said(job)[-3000:]
    assert batch.slurm.calls("scontrol") == [["requeue", job]]
    assert [found.name for found in run.parent.iterdir()] == [job]
    stopped = int(re.search(r"Going on from step (\d+)", batch.said(job))[1])
    assert 0 < stopped < STEPS
    assert json.loads((run / "metrics.json").read_text())["train"]["steps"] == STEPS
    assert equal(weights_of(run), weights_of(uninterrupted[1][0]))


@pytest.mark.slow
def test_other_numbers_than_srun_has_started_are_refused(batch):
    job = batch.submit("trainer.devices=8")
    assert batch.end(job)[0] in ([2, 2], [2, 143], [143, 2]), batch.said(job)[-3000:]  # srun ends the other rank
    assert "trainer.devices=8 mean 2 x 8 ranks, and srun has started 2 x 1" in batch.said(job)
    assert not (batch.folder / "outputs").exists()


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "train.py")]


@pytest.mark.slow
def test_torchrun(tmp_path):
    typed = ["trainer=cpu", "trainer.max_steps=4", "name=torchrun", *SMALL]
    ended = subprocess.run([*TORCHRUN, *typed], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    (run,) = (tmp_path / "outputs" / "torchrun").iterdir()
    assert ended.stdout.count("2 ranks,") == ended.stdout.count("Wrote ") == 1
    log = (run / "log.txt").read_text()
    assert log.count("2 ranks,") == log.count("Wrote ") == 1
    assert json.loads((run / "metrics.json").read_text())["provenance"]["num_ranks"] == 2
    assert (run / ".hydra" / "overrides.yaml").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["trainer.devices=3"], "trainer.devices=3 mean 1 x 3 ranks, and torchrun has started 1 x 2"),
        (["-m", "optim.lr=1e-3,1e-4"], "-m: torchrun has started 2 ranks"),
    ],
)
def test_what_does_not_go_with_torchrun_is_refused(tmp_path, typed, says):
    ended = subprocess.run([*TORCHRUN, *typed], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1 and re.search(r"exitcode +: 2 ", ended.stderr), "torchrun's own code is 1"
    assert says in ended.stderr and list(tmp_path.iterdir()) == []


RECORDED = """
import json, os, torch


class Recorded(torch.optim.AdamW):
    def step(self, *arguments, **more):
        super().step(*arguments, **more)
        group = self.param_groups[0]
        total = sum(p.detach().double().sum().item() for group in self.param_groups for p in group["params"])
        line = {"pid": os.getpid(), "rank": torch.distributed.get_rank(), "ranks": torch.distributed.get_world_size(),
                "lr": self.defaults["lr"], "total": total}
        with open(os.environ["RECORDED"] + f"/{os.getpid()}.{self.defaults['lr']}", "a") as file:
            file.write(json.dumps(line) + "\\n")
"""
"""An optimizer that writes down, on every rank and at every step, with what it really works."""


@pytest.mark.slow
def test_a_sweep_trains_each_job_on_all_ranks_with_the_same_overrides(tmp_path):
    """Lightning by itself would have each rank go through the sweep again, with whatever its sweeper says there."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "recorded.py").write_text(RECORDED)
    (tmp_path / "steps").mkdir()
    rates = [1e-4, 1e-3, 4e-3]
    ended = subprocess.run(
        command("-m", "trainer=cpu", "trainer.devices=2", "trainer.max_steps=3", "name=lr", "plugins=[recorded]",
                "optim._target_=recorded.Recorded", f"optim.lr={','.join(map(str, rates))}", *SMALL),
        cwd=tmp_path, capture_output=True, text=True, timeout=400,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "lab"), "RECORDED": str(tmp_path / "steps")},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    (folder,) = (tmp_path / "outputs" / "lr").iterdir()
    files = [[json.loads(line) for line in file.read_text().splitlines()] for file in (tmp_path / "steps").iterdir()]
    assert len(files) == 6, "a process has seen another job's learning rate, or there was one more"
    children = set()
    for job, rate in enumerate(rates):
        first, second = sorted((lines for lines in files if lines[0]["lr"] == rate), key=lambda lines: lines[0]["rank"])
        assert [lines[0]["rank"] for lines in (first, second)] == [0, 1] and first[0]["ranks"] == 2
        assert len(first) == len(second) == 3
        assert [line["total"] for line in first] == [line["total"] for line in second], "the ranks train one model"
        children.add(second[0]["pid"])
        overrides = yaml.safe_load((folder / str(job) / ".hydra" / "overrides.yaml").read_text())
        assert f"optim.lr={rate}" in overrides
        assert json.loads((folder / str(job) / "metrics.json").read_text())["provenance"]["num_ranks"] == 2
    assert len(children) == 3 and len({lines[0]["pid"] for lines in files} - children) == 1
    assert sorted(found.name for found in (tmp_path / "outputs").rglob("metrics.json")) == ["metrics.json"] * 3


FAILING = """
from lightning.pytorch.callbacks import Callback

class Fails(Callback):
    def on_train_batch_end(self, trainer, module, *_):
        if module.optimizers().param_groups[0]["lr"] > 0.5:
            raise RuntimeError("out of luck")
"""


@pytest.mark.slow
def test_a_job_that_fails_on_all_ranks_stops_no_other_job(tmp_path):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "failing.py").write_text(FAILING)
    ended = subprocess.run(
        command("-m", "trainer=cpu", "trainer.devices=2", "trainer.max_steps=3", "name=lr", "plugins=[failing]",
                "+callbacks.fails._target_=failing.Fails", "optim.schedule=constant", "optim.warmup_fraction=0",
                "optim.lr=1.0,1e-3", *SMALL),
        cwd=tmp_path, capture_output=True, text=True, timeout=400,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "lab"), str(ROOT)])},
    )  # fmt: skip
    assert ended.returncode == 1, "one job has failed"
    (folder,) = (tmp_path / "outputs" / "lr").iterdir()
    rows = json.loads((folder / "sweep.json").read_text())["jobs"]
    errors = {row["swept"]["optim.lr"]: row.get("error") for row in rows}
    assert errors == {1.0: "out of luck", 1e-3: None}
    assert json.loads((folder / "1" / "metrics.json").read_text())["provenance"]["num_ranks"] == 2


@pytest.mark.slow
def test_a_sweep_in_slurms_queue(tmp_path):
    """Two jobs of two ranks and one that judges, all by sbatch; the second is told that its time ends, and goes on."""
    typed = ["-m", "launch=slurm", "trainer=cpu", "trainer.num_nodes=2", "trainer.devices=1", "optim.lr=1e-3,4e-3", "name=q",
             "hydra.launcher.gpus_per_node=null", "+hydra.launcher.additional_parameters.reservation=mine", "trainer.max_steps=12",
             "evaluation.scenes_caption.source.num_records=8", "evaluation.scenes_caption.metrics=[CIDEr]",
             "evaluation.scenes_caption.controls=[]", *[word for word in SMALL if not word.startswith("judge")]]  # fmt: skip
    with Slurm(tmp_path / "slurm") as slurm:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        sweep = subprocess.Popen(command(*typed), cwd=tmp_path, env=slurm.environment, **pipes)
        try:
            rows, give_up = None, time.monotonic() + 180
            while (rows is None or rows.read_text().count("\n") < 4) and time.monotonic() < give_up:
                time.sleep(0.05)
                rows = next(iter((tmp_path / "outputs").glob("q/*/1/metrics.csv")), None)
            (spec,) = slurm.folder.glob("*.json")
            assert slurm.call("scancel", "--signal=USR1", f"{spec.stem}_1").returncode == 0
            said, errors = sweep.communicate(timeout=300)
        finally:
            sweep.kill()  # it would wait for ever for jobs that are no more
        assert sweep.returncode == 0, errors[-3000:]
        first, second = json.loads(spec.read_text())["jobs"]
        assert slurm.calls("scontrol") == [["requeue", f"{spec.stem}_1"]], "by visllama alone, and this job alone"
        assert (slurm.folder / f"{first}.codes").read_text() == "[0, 0]\n"
        assert (slurm.folder / f"{second}.codes").read_text() == "[143, 143]\n[0, 0]\n"
        asked = [json.loads(file.read_text())["options"] for file in slurm.folder.glob("*.json")]
        jobs, judge = sorted(asked, key=lambda options: "array" not in options)
    assert (jobs["nodes"], jobs["ntasks-per-node"], jobs["cpus-per-task"], jobs["array"]) == ("2", "1", "1", "0-1%2")
    assert (jobs["signal"], "requeue" in jobs, "gpus-per-node" in jobs, jobs["reservation"]) == (
        "USR1@120",
        True,
        False,
        "mine",
    )
    assert (judge["nodes"], "requeue" in judge, judge["reservation"]) == ("1", False, "mine")
    (folder,) = (tmp_path / "outputs" / "q").iterdir()
    assert len(json.loads((folder / "sweep.json").read_text())["jobs"]) == 2 and (folder / "sweep.png").exists()
    for job in ("0", "1"):
        log = (folder / job / "log.txt").read_text()
        assert log.count("2 ranks,") == 1 + int(job) == 1 + log.count("Going on from step"), (
            "of each start one rank speaks"
        )
        assert json.loads((folder / job / "metrics.json").read_text())["train"]["steps"] == 12
    judged = [json.loads((folder / job / "metrics.json").read_text())["evaluations"] for job in ("0", "1")]
    assert sum("scenes_caption" in evaluations for evaluations in judged) == 1, "the best alone sees test"
    assert "val CIDEr x100" in said and "scenes_caption: test" in said and "submitit INFO" not in said
