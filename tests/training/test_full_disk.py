"""A disk that is full outside a checkpoint: the run ends with a message, and goes on once there is room."""

from __future__ import annotations

import pytest

from tests.support.small_disk import run_on_small_disk

_TRAIN = """
import subprocess
import sys
from pathlib import Path
from visllama import cli
from visllama.training import run
disk, fills_before = Path(sys.argv[1]), sys.argv[2]
ballast = disk / "ballast"
def fill():
    with open(ballast, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
if fills_before == "start":
    fill()
else:
    real = getattr(run, fills_before)
    def filling(*arguments, **named):
        fill()
        return real(*arguments, **named)
    setattr(run, fills_before, filling)
sys.argv[1:] = ["trainer=cpu", "trainer.max_steps=2", "judge=false", "stage.global_batch_size=8", "data.num_val_records=8",
                "model.connector.hidden_dim=64", f"hydra.run.dir={disk}/run"]
try:
    cli.train()
except SystemExit as left:
    print("ended with", left.code)
print("LEFT", sorted(str(p.relative_to(disk)) for p in disk.rglob("*") if p.is_file()), flush=True)
if fills_before == "save_weights":
    ballast.unlink()
    subprocess.run([sys.executable, "-m", "visllama", "train", f"resume={disk}/run"], check=True)
    print("WEIGHTS", sorted(p.name for p in (disk / "run" / "weights").iterdir()))
"""


def train(tmp_path, fills_before: str) -> tuple[str, str, list[str]]:
    ended = run_on_small_disk(_TRAIN, tmp_path / "disk", "64m", str(tmp_path / "disk"), fills_before)
    assert "Traceback" not in ended.stderr + ended.stdout and "ended with 2" in ended.stdout, ended.stderr
    left = next(line for line in ended.stdout.splitlines() if line.startswith("LEFT"))
    return ended.stdout, ended.stderr, left


def test_before_anything_is_written(tmp_path):
    _, said, left = train(tmp_path, "start")
    assert f"hydra.run.dir={tmp_path}/disk/run: cannot be written (No space left on device)" in said
    assert left == "LEFT ['ballast']"


@pytest.mark.slow
def test_before_the_weights(tmp_path):
    out, said, left = train(tmp_path, "save_weights")
    assert f"{tmp_path}/disk/run/weights/visllama.safetensors: cannot be written (No space left on device)" in said
    assert f"step_00000002 is safe in its checkpoints/: mend that, and go on by  resume={tmp_path}/disk/run" in said
    assert "weights" not in left and "/." not in left.replace("run/.hydra", "")
    assert "WEIGHTS ['visllama.json', 'visllama.safetensors']" in out, "once there is room"


@pytest.mark.slow
def test_before_the_first_files(tmp_path):
    _, said, left = train(tmp_path, "write_config")
    assert f"{tmp_path}/disk/run/config.yaml: cannot be written (No space left on device)" in said
    assert "no checkpoint is written yet: mend that, and begin again" in said and "run/config.yaml" not in left


@pytest.mark.slow
def test_before_the_metrics(tmp_path):
    _, said, left = train(tmp_path, "write_json")
    assert "metrics.json: cannot be written (No space left on device): the trained weights are safe" in said
    assert f"judge them by  visllama evaluate weights={tmp_path}/disk/run/weights" in said
    assert "run/weights/visllama.safetensors" in left and "metrics.json" not in left
