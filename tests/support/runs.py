"""Runs that are started, waited for, and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

RUN = ["trainer=cpu", "judge=false", "stage.global_batch_size=16", "data.log_consumed=true", "data.num_val_records=8",
       "trainer.log_every_steps=2", "trainer.val_check_interval=0.5", "model.connector.hidden_dim=64"]  # fmt: skip


def start(*overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "visllama", "train", *overrides]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(*overrides: str) -> str:
    process = start(*overrides)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said[-3000:]
    return said


def kill(process: subprocess.Popen) -> None:
    """Kill a run and its ranks and workers, as a machine that goes down would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for_steps(folder, count: int, process: subprocess.Popen) -> None:
    path, until = folder / "consumed.jsonl", time.monotonic() + 200
    while not path.is_file() or len(path.read_text().splitlines()) < count:
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0][-3000:]
        time.sleep(0.05)
