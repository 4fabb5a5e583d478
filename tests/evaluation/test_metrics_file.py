"""`metrics.json` is read as what somebody else may have written."""

from __future__ import annotations

import json
import os

import pytest

from visllama.evaluation.metrics_file import judged, read_metrics


def test_what_a_run_wrote_is_read(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"evaluations": {}}))
    assert read_metrics(tmp_path) == {"evaluations": {}}


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_what_is_no_object_is_refused(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError):
        read_metrics(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.json")
    with pytest.raises(ValueError, match="no regular file"):
        read_metrics(tmp_path)


def test_evaluations_are_those_with_a_score_and_a_plain_name():
    good = {"metrics": {"CIDEr": 1.0, "BLEU-4": float("nan")}}
    found = {"scenes": good, "../x": good, "a b": good, "none": {"metrics": {"CIDEr": None}}, "text": "x"}
    found["huge"] = {"metrics": {"CIDEr": 10**400}}
    assert judged({"evaluations": found}) == {"scenes": good} and judged({"evaluations": [1]}) == {}
