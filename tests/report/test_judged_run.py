"""What is read of a run's folder is data of somebody else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.compared_runs import caption_evaluation, config_of, write_run
from visllama.errors import ConfigError
from visllama.report.judged_run import read_runs, short_names


def test_a_run_is_read(tmp_path):
    evaluation = caption_evaluation({"CIDEr": 1.25})
    write_run(tmp_path, {"scenes": evaluation, "../x": evaluation, "none": {"metrics": {"CIDEr": "high"}}}, config_of())
    run = read_runs([tmp_path])[0]
    assert list(run.evaluations) == ["scenes"] and run.config["seed"] == 1 and run.revision == "01234567"
    assert run.scores_file("scenes") == tmp_path / "evaluations" / "scenes" / "scores.jsonl"
    assert run.scores_file("predictions") == tmp_path / "scores.jsonl"


def test_a_run_of_evaluate_has_the_config_that_hydra_wrote(tmp_path):
    write_run(tmp_path, {"scenes": caption_evaluation({"CIDEr": 1.25})})
    assert read_runs([tmp_path])[0].config == {}
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("seed: 7\nweights: ${a.b}\n")
    assert read_runs([tmp_path])[0].config == {"seed": 7, "weights": "${a.b}"}


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000, b"\xff"])
def test_what_no_run_wrote_is_refused(tmp_path, content):
    (tmp_path / "metrics.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"runs: .*metrics\.json cannot be read"):
        read_runs([tmp_path])


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.json")
    with pytest.raises(ConfigError, match="no regular file"):
        read_runs([tmp_path])


def test_names_are_as_short_as_they_tell_runs_apart():
    folders = [Path("/o/lr/1/a"), Path("/o/lr/2/a"), Path("/o/lr/2/b")]
    assert short_names(folders) == ["1/a", "2/a", "2/b"]
    assert short_names([Path("/o/a"), Path("/o/b")]) == ["a", "b"]
    assert short_names([Path("/o/a"), Path("/o/a")]) == ["a", "a"]
    assert short_names([Path("/o/\x1b[1m"), Path("/o/b")]) == ["\\x1b[1m", "b"]
