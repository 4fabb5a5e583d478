"""A rank that does not come to a collective: all ranks end within the timeout, each with its stacks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.commands import ROOT
from tests.support.processes import is_running

SLEEPY = """
import os, time
from visllama.model.connector import MLPConnector

class Sleepy(MLPConnector):
    calls = 0

    def forward(self, pooled_features):
        Sleepy.calls += 1
        if Sleepy.calls == 8 and os.environ.get("LOCAL_RANK") == "1":
            open(os.environ["SLEEPS"], "w").close()
            time.sleep(600)
        return super().forward(pooled_features)
"""
TIMEOUT_S = 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "launch",
    [["-m", "visllama", "train", "trainer.devices=2"], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "train.py")]],
    ids=["launcher", "torchrun"],
)  # fmt: skip
def test_a_rank_that_sleeps_inside_a_collective(tmp_path, launch):
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    overrides = ["trainer=cpu", "trainer/strategy=ddp", "judge=false", "trainer.max_steps=50", "stage.global_batch_size=8", "data.num_val_records=8", f"trainer.timeout_s={TIMEOUT_S}",
                 "plugins=[sleepy]", "model.connector._target_=sleepy.Sleepy", f"hydra.run.dir={tmp_path / 'run'}"]  # fmt: skip
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "SLEEPS": str(tmp_path / "sleeps")}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, *launch, *overrides], env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    until = time.monotonic() + 120
    while not (tmp_path / "sleeps").exists():
        assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.1)
    began = time.monotonic()
    ranks = [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and str(tmp_path / "run") in commandline(path)
    ]
    assert len(ranks) >= 2
    code = process.wait(TIMEOUT_S + 60)
    while any(map(is_running, ranks)) and time.monotonic() < began + TIMEOUT_S + 60:
        time.sleep(0.1)
    said = (tmp_path / "log").read_text()
    assert code != 0 and not any(map(is_running, ranks)), said[-3000:]
    assert "nothing was done for trainer.timeout_s=10" in said
    stacks = {path.name: path.read_text() for path in (tmp_path / "run" / "stacks").iterdir()}
    assert stacks.keys() == {"rank_0000.txt", "rank_0001.txt"}
    assert "sleepy.py" in stacks["rank_0001.txt"], "where it slept"
    assert "training_step" in stacks["rank_0000.txt"] and "sleepy.py" not in stacks["rank_0000.txt"], "where it waited"


def commandline(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""
