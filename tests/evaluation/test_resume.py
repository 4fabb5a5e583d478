"""`evaluate resume=RUN`: a judgement that was killed goes on in its folder, and nothing else's texts are mixed in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch

from tests.support.commands import ROOT, evaluate
from tests.support.runs import kill
from tests.support.tiny import TEXT, tiny_parts
from visllama.model.weights import save_weights

WORDS = [
    "evaluation=[scenes_caption]", "evaluation.scenes_caption.source.num_records=200", "evaluation.scenes_caption.batch_size=4",
    "evaluation.scenes_caption.metrics=[CIDEr]", "evaluation.scenes_caption.controls=[]", "trainer=cpu",
]  # fmt: skip


@pytest.fixture
def weights(make_model, tmp_path):
    save_weights(make_model(dtype=torch.float32), tiny_parts(), TEXT, tmp_path / "weights")
    return tmp_path / "weights"


@pytest.mark.slow
def test_a_killed_judgement_goes_on_and_nothing_else_does(weights, tmp_path):
    command = [sys.executable, str(ROOT / "evaluate.py"), f"weights={weights}", *WORDS, "hydra.run.dir=run"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    log = tmp_path / "run" / "evaluations" / "scenes_caption" / "predictions.jsonl"
    until = time.monotonic() + 200
    while not log.is_file() or log.read_text().count("\n") < 8:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    kill(process)
    before = log.read_text()
    num_before = before.count("\n")
    assert num_before < 200

    beams = evaluate("resume=run", "evaluation/decoding=beam5", cwd=tmp_path)
    assert beams.returncode == 2 and "was written by another decoding" in beams.stderr
    assert log.read_text() == before

    ended = evaluate("resume=run", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert f"scenes_caption: {num_before} of 200 were written before" in ended.stdout
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len({row["image_id"] for row in rows}) == len(rows) == 200
    assert [json.loads(line) for line in before.splitlines()[:num_before]] == rows[:num_before]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["evaluations"]["scenes_caption"]["n"] == 200

    shutil.copytree(weights, tmp_path / "others")
    description = tmp_path / "others" / "visllama.json"
    description.write_text(description.read_text() + "\n")
    others = evaluate("resume=run", "weights=others", cwd=tmp_path)
    assert others.returncode == 2 and "was written by another weights" in others.stderr


@pytest.mark.parametrize("named", ["last", "auto"])
def test_a_judgement_is_named_by_its_folder(tmp_path, named):
    ended = evaluate(f"resume={named}", cwd=tmp_path)
    assert ended.returncode == 2 and "evaluate goes on in the folder that is named: give resume=RUN" in ended.stderr
