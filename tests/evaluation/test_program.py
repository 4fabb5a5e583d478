"""`evaluate.py` as a user calls it."""

from __future__ import annotations

import json

import pytest

from tests.support.commands import evaluate
from tests.support.said_captions import GOOD, REFERENCES


def test_scores_files_with_no_model_loaded(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(GOOD))
    (tmp_path / "r.json").write_text(json.dumps(REFERENCES))
    ended = evaluate("predictions=p.json", "references=r.json", "metrics=[CIDEr]", "hydra.run.dir=out", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["evaluations"]["predictions"]
    assert round(metrics["metrics"]["CIDEr"], 4) == 0.5637 and metrics["n"] == 2
    assert "56.4" in ended.stdout and "Wrote" in ended.stdout
    assert "56.4" in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], "give one of weights=RUN/weights and predictions=FILE"),
        (["weights=nowhere"], "weights=nowhere: no such file or folder"),
        (["predictions=p.json"], "references=FILE is missing"),
        (
            ["model=tiny", "weights=."],
            "model=tiny: this verb has no model, train does: the model is described inside the weights",
        ),
    ],
)
def test_bad_calls_end_with_a_message(tmp_path, overrides, says):
    ended = evaluate(*overrides, cwd=tmp_path)
    assert ended.returncode != 0 and says in ended.stderr
    assert "Traceback" not in ended.stderr
