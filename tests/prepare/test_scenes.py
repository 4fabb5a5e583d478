"""The backbones can be rebuilt: a small pair by the same road, and the shipped one by its recipe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from visllama.config.schema import conf_dir
from visllama.data.scenes.world import WORLD_VERSION
from visllama.model.locate import SHIPPED


def prepare(*overrides: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "visllama", "prepare", "source=scenes", *overrides],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=900,
    )


def test_the_shipped_pair_is_of_this_recipe_and_passed_its_gates():
    shipped = json.loads((SHIPPED / "recipe.json").read_text())
    recipe = OmegaConf.to_container(OmegaConf.load(conf_dir() / "source" / "scenes.yaml").prepare)
    assert shipped["recipe"] == recipe and shipped["world_version"] == WORLD_VERSION
    assert all(shipped["measured"][name] >= least for name, least in recipe["gates"].items())


NO_GATES = [
    f"prepare.gates.{name}=null"
    for name in ("clip_probe_color", "clip_probe_shape", "clip_near_misses_two", "connector_val_cider")
]
SMALL = [
    "prepare.clip.num_steps=200",
    "prepare.clip.num_groups=1500",
    "prepare.llama.num_steps=150",
    "prepare.llama.num_documents=3000",
    "out=pair",
]


@pytest.mark.slow
def test_a_smaller_rebuild_trains_on_both_and_measures(tmp_path):
    """A fifth of the recipe already sees colors; the real gates hold for the shipped pair (above, and in test_clip)."""
    ended = prepare(*SMALL, *NO_GATES, "prepare.gates.clip_probe_color=0.95", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert {path.name for path in (tmp_path / "pair").iterdir()} == {"clip", "llama", "recipe.json"}
    measured = json.loads((tmp_path / "pair" / "recipe.json").read_text())["measured"]
    assert measured["clip_probe_color"] >= 0.95 and "clip_near_misses_two" in measured


@pytest.mark.slow
def test_a_missed_gate_is_an_error_that_names_it(tmp_path):
    tiny = [
        "prepare.clip.num_steps=5",
        "prepare.clip.num_groups=100",
        "prepare.llama.num_steps=5",
        "prepare.llama.num_documents=100",
        "out=pair",
    ]
    ended = prepare(*tiny, *NO_GATES, "prepare.gates.clip_probe_shape=0.99", cwd=tmp_path)
    assert ended.returncode == 2 and "misses its gates: clip_probe_shape" in ended.stderr


@pytest.mark.proof
def test_the_whole_recipe(tmp_path):
    """Eight minutes on two cores; every gate, a short connector run among them."""
    ended = prepare("out=pair", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
