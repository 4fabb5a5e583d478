"""What the tests share: the shipped tiny backbones, models in fp64, and a clean Hydra for each test."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="visllama-state-")  # no test makes a key in a home
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from tests.support.commands import ROOT
from tests.support.composed import compose_fast
from tests.support.tiny import tiny_parts
from visllama.config.plain import plain
from visllama.data.scenes.source import ScenesSource
from visllama.model.weights import build_model

torch.set_num_threads(1)


@pytest.fixture
def make_model():
    """Make a tiny model with its base weights; fp64 unless told otherwise."""

    def make(connector: str = "mlp", dtype: torch.dtype = torch.float64, seed: int = 0):
        torch.manual_seed(seed)
        model = build_model(tiny_parts(connector), ("connector", "markers")).load_base_weights(dtype)
        model.connector.to(dtype)
        model.markers.data = model.markers.data.to(dtype)
        # Vectors large enough that an image matters: a fresh connector whispers.
        for parameter in model.connector.parameters():
            parameter.data *= 3
        return model

    return make


@pytest.fixture
def records():
    """Return six scenes with captions of different lengths."""
    source = ScenesSource("train", 6, 1)
    return [source[i] for i in range(len(source))]


@pytest.fixture
def compose_config(tmp_path):
    """Compose a verb's config as Hydra would from a command line, with any config folders of the user's own."""

    def run(verb: str, *overrides: str, config_dir=None):
        extra = [f"hydra.searchpath=[file://{config_dir}]"] if config_dir else []
        cfg = compose_fast(verb, *overrides, *extra)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(tmp_path)
            HydraConfig.instance().set_config(cfg.copy())
            del cfg.hydra
        return cfg

    yield run
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.fixture
def configure(compose_config):
    """Compose a verb's config, and turn it into the plain object that the verb reads."""
    return lambda verb, *overrides, **options: plain(compose_config(verb, *overrides, **options))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Build the package's wheel."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return next(folder.glob("*.whl"))
