"""Shapes of the published models."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, CLIPVisionModelWithProjection, Dinov2Model, SiglipVisionModel

from tests.support.plans import CLUSTER, SIZES
from tests.support.verbs import plan
from visllama.config.schema import conf_dir
from visllama.errors import ConfigError
from visllama.plan.published import language_configs, vision_configs


class TestPublishedShapes:
    YAMLS = sorted(
        f"{group}/{path.stem}"
        for group in ("language_model", "vision_encoder")
        for path in (conf_dir() / "model" / group).glob("*.yaml")
    )

    @pytest.mark.parametrize("name", [name for name in YAMLS if not name.endswith("/tiny")])
    def test_every_yaml_has_one_and_it_is_exact(self, name):
        path = OmegaConf.load(conf_dir() / "model" / f"{name}.yaml").path
        config = (language_configs() | vision_configs())[path]
        kinds = {
            "clip_vision_model": CLIPVisionModelWithProjection, "dinov2": Dinov2Model,
            "siglip_vision_model": SiglipVisionModel,
        }  # fmt: skip
        with torch.device("meta"):
            kind = kinds.get(config.model_type)
            model = kind(config) if kind else AutoModelForCausalLM.from_config(config)
        assert sum(p.numel() for p in model.parameters()) == SIZES[name]

    def test_the_models_own_config_wins(self, compose_config, tmp_path):
        own = language_configs()["huggyllama/llama-7b"]
        own.num_hidden_layers = 2
        own.save_pretrained(tmp_path / "huggyllama" / "llama-7b")
        found = plan(compose_config("plan", *CLUSTER, f"paths.models={tmp_path}"))
        frozen = {line.name: line.num_bytes for line in found.mean.lines}["frozen language model"]
        assert frozen == 2 * (6_738_415_616 - 30 * (202_375_168 + 2 * 4096))

    def test_an_unknown_model_is_told_from_a_known_one(self, compose_config):
        cfg = compose_config("plan", *CLUSTER, "model.language_model.path=lab/unheard")
        with pytest.raises(
            ConfigError, match=r"model\.language_model\.path=lab/unheard: neither .* huggyllama/llama-7b"
        ):
            plan(cfg)
