"""The verb `plan`: the shipped experiment, what the command says, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from math import lcm
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.support.plans import CLUSTER, lines
from tests.support.verbs import plan
from visllama.config.schema import conf_dir
from visllama.errors import ConfigError
from visllama.machine.cards import CARDS
from visllama.training.assembly import count_steps


class TestPretrain8x8:
    def test_it_is_what_was_asked_for(self, compose_config):
        cfg = compose_config("plan", "experiment=pretrain_8x8", "trainer.num_nodes=8")
        assert cfg.stage.global_batch_size % lcm(64, 60, 48, 40, 32) == 0
        found = plan(cfg)
        assert found.job.num_ranks == 64 and found.fits and found.warnings == []
        assert lines(found)["trained weights"] <= 4 * 45e6
        assert found.num_steps == 30_000_000 // 3840
        one, *_, eight = (step.samples_per_second for step, _ in found.by_nodes)
        assert eight > 7.5 * one

    @pytest.mark.parametrize(
        ("overrides", "steps"),
        [([], 100 * 3 // 64), (["stage.num_samples=1000"], 15), (["stage.num_samples=1000", "trainer.max_steps=7"], 7)],
    )
    def test_a_budget_in_samples_stands_in_for_epochs(self, configure, overrides, steps):
        assert count_steps(configure("train", *overrides), 100) == steps

    def test_a_budget_of_less_than_a_batch_is_an_error(self, configure):
        with pytest.raises(ConfigError, match=r"stage\.num_samples=63 makes no whole batch"):
            count_steps(configure("train", "stage.num_samples=63"), 1000)


@pytest.mark.parametrize(
    "overrides", [[], ["experiment=llava15_finetune"], ["stage=finetune", "model=real"]], ids=" ".join
)
def test_it_takes_the_config_that_train_takes(compose_config, overrides):
    ours, theirs = compose_config("plan", *overrides), compose_config("train", *overrides)
    own = {
        "name": "plan",
        "gpu": "a100_80g",
        "utilisation": 0.4,
        "network_gb_s": 50.0,
        "text_tokens": None,
        "samples": None,
    }
    assert OmegaConf.to_container(ours) == OmegaConf.to_container(theirs) | own | {"out": None}
    assert OmegaConf.get_type(ours.stage) is OmegaConf.get_type(theirs.stage) is not dict


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("gpu=a100", "gpu=a100: did you mean a100_40g or a100_80g"),
        ("utilisation=1.5", "utilisation=1.5: must be more than 0, and at most 1"),
        ("network_gb_s=0", "network_gb_s=0.0: must be more than 0"),
        ("text_tokens=300", "text_tokens=300.0: more than stage.max_text_tokens=256"),
        ("samples=0", "samples=0: must be more than 0"),
        ("stage.num_samples=0", "stage.num_samples=0: must be more than 0, or null for stage.epochs"),
        ("out=nowhere/plan.json", "out=nowhere/plan.json: there is no folder nowhere"),
        ("data.sources.scenes.num_recods=5", "data.sources.scenes: .*num_recods"),
        ("+model.connector.width=5", r"model\.connector: .*width"),
        ("optim._target_=torch.optim.Adagrat", "Adagrat"),
        ("data.sources.scenes._target_=visllama.data.order.Order", r"data\.sources\.scenes\._target_=.*is no source"),
    ],
)
def test_what_it_refuses(compose_config, override, says):
    cfg = compose_config("plan", override if "recods" not in override else f"+{override}")
    with pytest.raises(ConfigError, match=says):
        plan(cfg)


def test_the_help_names_every_card():
    text = (conf_dir() / "plan.yaml").read_text()
    assert all(f"{name}" in text for name in CARDS)
    assert all(card.memory_gib < int(name.rpartition("_")[2][:-1]) for name, card in CARDS.items())


def test_the_command_needs_no_model_no_data_and_80_columns(tmp_path):
    command = [sys.executable, "-m", "visllama", "plan", *CLUSTER, "model/language_model=llama_65b", "out=plan.json",
               "stage.global_batch_size=3840", "samples=566747"]  # fmt: skip
    root = str(Path(__file__).parents[2])
    environment = {"PATH": "", "PYTHONPATH": root, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert ended.returncode == 0, ended.stderr
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["fits"] is False and told["switches"][0] == "trainer/strategy=fsdp"
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["plan.json"]
    *shown, run = ended.stdout.splitlines()
    assert run.startswith("Run it:  visllama train model=real") and run.endswith(" ".join(told["switches"]))
    assert max(map(len, shown)) <= 80 and "…" not in ended.stdout
    for name in ("frozen language model", "optimizer's state", "peak", "frozen blocks", "GPU"):
        assert name in ended.stdout
