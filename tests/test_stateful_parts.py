"""Connectors with buffers, by the real program: judged alike in their run and from their weights, killed or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.commands import ROOT
from tests.support.runs import finish, kill, start, wait_for_steps

EVALUATION = ["evaluation.scenes_caption.source.num_records=12", "evaluation.scenes_caption.controls=[]",
              "plugins=[tests.support.stateful_parts]", "trainer=cpu", "trainer.precision=64-true"]  # fmt: skip
RUN = [*EVALUATION, "trainer.max_steps=8", "trainer.checkpoint_every_steps=3", "stage.global_batch_size=16",
       "micro_batch_size=6", "data.log_consumed=true", "data.num_val_records=8", "optim.lr=1e-2"]  # fmt: skip
CONNECTORS = {"normed": ("Normed", "connector.norm.running_mean"), "counting": ("Counting", "connector.num_trained")}
STRATEGIES = {
    "one": [],
    "ddp": ["trainer.devices=2", "trainer/strategy=ddp"],
    "fsdp": ["trainer.devices=2", "trainer/strategy=fsdp"],
}


@pytest.fixture
def config_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    folder = tmp_path / "conf" / "model" / "connector"
    folder.mkdir(parents=True)
    for name, (kind, _) in CONNECTORS.items():
        (folder / f"{name}.yaml").write_text(f"_target_: tests.support.stateful_parts.{kind}\nnum_image_tokens: 4\n")
    return tmp_path / "conf"


def judged(folder: Path) -> tuple[dict, str]:
    (evaluation,) = json.loads((folder / "metrics.json").read_text())["evaluations"].values()
    return evaluation["metrics"], (folder / "evaluations" / "scenes_caption" / "predictions.jsonl").read_text()


def evaluate(config_dir: Path, weights: Path, folder: Path) -> None:
    words = ["--config-dir", config_dir, f"weights={weights}", *EVALUATION, f"hydra.run.dir={folder}"]
    ended = subprocess.run(
        [sys.executable, "-m", "visllama", "evaluate", *words], capture_output=True, text=True, timeout=400
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.parametrize(
    ("connector", "strategy"),
    [
        pytest.param("normed", "one", marks=pytest.mark.slow),
        pytest.param("normed", "ddp", marks=pytest.mark.slow),
        pytest.param("counting", "fsdp", marks=pytest.mark.slow),
        pytest.param("counting", "one", marks=pytest.mark.proof),
        pytest.param("counting", "ddp", marks=pytest.mark.proof),
        pytest.param("normed", "fsdp", marks=pytest.mark.proof),
    ],
)
def test_buffers_outlive_a_run(tmp_path, config_dir, connector, strategy):
    """The buffers are in the weights and the checkpoints: killed and resumed is to the bit as never killed."""
    shape = ["--config-dir", str(config_dir), f"model/connector={connector}", *RUN, *STRATEGIES[strategy]]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(*shape, f"hydra.run.dir={whole}")
    process = start(*shape, f"hydra.run.dir={killed}")
    wait_for_steps(killed, 5, process)
    kill(process)
    said = finish(f"resume={killed}", "--config-dir", str(config_dir), "plugins=[tests.support.stateful_parts]")
    assert "Going on from step" in said

    expected, found = (load_file(run / "weights" / "visllama.safetensors") for run in (whole, killed))
    assert expected.keys() == found.keys() and CONNECTORS[connector][1] in expected
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype and (tensor == found[name]).all(), name
    assert expected[CONNECTORS[connector][1]].abs().sum() > 0

    evaluate(config_dir, whole / "weights", tmp_path / "again")
    assert judged(whole) == judged(killed) == judged(tmp_path / "again")
