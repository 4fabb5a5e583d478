"""The verb `inspect` takes what train takes, refuses what train refuses, and writes a page."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from tests.support.verbs import inspect
from visllama.errors import ConfigError


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["stage=finetune", "stage.template=vicuna", "seed=7"],
        ["experiment=llava15_finetune", "model=tiny"],
        ["data=shards", "data.sources.shards.path=x.tar", "experiment=smoke", "model/lora=qv", "optim.lr=3"],
    ],
    ids=" ".join,
)
def test_it_takes_the_config_that_train_takes(compose_config, overrides):
    ours, theirs = compose_config("inspect", *overrides), compose_config("train", *overrides)
    own = {"name": "inspect", "samples": 8, "num_samples": 256, "weights": None, "num_pictures": 100}
    assert OmegaConf.to_container(ours) == OmegaConf.to_container(theirs) | own
    assert OmegaConf.get_type(ours.stage) is OmegaConf.get_type(theirs.stage) is not dict


def test_values_for_one_triple_reach_it_too(compose_config, tmp_path):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "tiny_scenes_pretrain.yaml").write_text("# @package _global_\nstage: {prompt: tuned}")
    assert compose_config("inspect", config_dir=tmp_path).stage.prompt == "tuned"
    assert compose_config("inspect", "stage=finetune", config_dir=tmp_path).stage.prompt == ""


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("samples=0", "samples=0: must be more than 0"),
        ("num_samples=-1", "num_samples=-1: must be more than 0"),
        ("num_pictures=9", "num_pictures: is read with weights= alone; num_samples= is how many samples are counted"),
        ("optim.lr=-1", "optim.lr=-1"),
        ("stage.template=vicunna", "stage.template=vicunna"),
    ],
)
def test_what_train_refuses_is_refused(compose_config, typed, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        inspect(compose_config("inspect", typed))


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("weights=nowhere", "weights=nowhere: holds no visllama.json: give the weights/ folder of a run"),
        ("num_pictures=1", "num_pictures=1: must be 2 or more"),
        ("samples=0", "samples=0: must be more than 0"),
        (
            "evaluation=[scenes_vqa]",
            "evaluation=[scenes_vqa]: its task is vqa: a connector is looked at on pictures with",
        ),
        (
            "evaluation=none",
            "evaluation=[]: a connector is looked at on the pictures of one caption evaluation: name one",
        ),
        ("evaluation=[scenes_caption,shards_caption]", "evaluation=[scenes_caption,shards_caption]: a connector is"),
        ("optim.lr=1", "optim.lr: inspect weights= does not read it, since the model is described inside the weights"),
        ("model/connector=mlp", "model/connector: inspect weights= does not read it"),
        ("stage=finetune", "It reads weights, evaluation, decoding, num_pictures, samples, trainer, paths,"),
        ("num_samples=9", "num_samples: inspect weights= does not read it"),
        ("trainer.max_steps=9", "trainer.max_steps: inspect weights= does not read it"),
        ("+decoding.do_sample=true", "decoding.do_sample=true: captions would differ by chance: leave it out"),
        ("trainer.accelerator=tpu", "trainer.accelerator=tpu"),
        ("decoding.num_beams=0", "num_beams"),
    ],
)
def test_what_cannot_be_asked_of_weights_is_refused_before_they_are_loaded(compose_config, tmp_path, typed, says):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "visllama.json").write_text("{}")
    words = [typed] if typed.startswith("weights=") else [f"weights={tmp_path}/weights", typed]
    with pytest.raises(ConfigError, match=re.escape(says)):
        inspect(compose_config("inspect", *words))


def test_a_folder_that_holds_no_weights_of_ours_is_refused(compose_config, tmp_path):
    (tmp_path / "visllama.json").write_text("{}")
    with pytest.raises(ConfigError, match="format_version=None"):
        inspect(compose_config("inspect", f"weights={tmp_path}"))


def test_a_run_is_not_resumed(compose_config, tmp_path):
    (tmp_path / ".hydra").mkdir()
    with pytest.raises(ConfigError, match="inspect shows a run from its first step"):
        inspect(compose_config("inspect", f"resume={tmp_path}"))


def program(*typed: str, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "visllama", "inspect", *typed]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def test_the_program_writes_a_page_and_ends_with_an_error_where_nothing_is_learned(tmp_path):
    ended = program("stage.global_batch_size=4", "num_samples=1", "stage.max_text_tokens=1", cwd=tmp_path)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    assert ended.stderr.startswith("visllama inspect: stage.max_text_tokens=1: none of the 4 samples")
    (page,) = tmp_path.glob("outputs/inspect/*/inspect.html")
    assert f"Wrote {page.parent}: inspect.html" in ended.stdout
