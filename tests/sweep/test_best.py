import json
import shlex
import sys

import pytest

from visllama.sweep.best import best_command, is_judged

WORDS = ["name=a b", "sweep=optim_lr", "optim.lr=0.004", "+callbacks.prune._target_=x", "+callbacks.prune.trial=3"]


@pytest.mark.parametrize(("program", "expected"), [("train.py", ["python", "train.py"]), ("x", ["visllama", "train"])])
def test_the_best_line_is_a_run_without_a_sweep(compose_config, monkeypatch, program, expected):
    compose_config("train")
    monkeypatch.setattr(sys, "argv", [f"/somewhere/{program}"])
    assert shlex.split(best_command({"overrides": WORDS})) == [*expected, "name=a b", "optim.lr=0.004"]


def test_a_users_own_configs_are_found_again(compose_config, tmp_path):
    compose_config("train", config_dir=tmp_path)
    assert f"hydra.searchpath=[file://{tmp_path}]" in best_command({"overrides": WORDS})


def test_a_job_is_judged_once(tmp_path):
    assert not is_judged(tmp_path, ["scenes_caption"])
    (tmp_path / "metrics.json").write_text(json.dumps({"evaluations": {"scenes_caption_val": {}}}))
    assert not is_judged(tmp_path, ["scenes_caption"])
    (tmp_path / "metrics.json").write_text(
        json.dumps({"evaluations": {"scenes_caption_val": {}, "scenes_caption": {}}})
    )
    assert is_judged(tmp_path, ["scenes_caption"])
