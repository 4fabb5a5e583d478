from dataclasses import is_dataclass

import pytest
from omegaconf import OmegaConf

from visllama.config import plain as module
from visllama.config.plain import evaluations, judging, plain, to_dict, to_yaml
from visllama.config.schema import PrepareConfig


def test_every_reference_is_resolved_and_nothing_of_omegaconf_is_left(compose_config):
    cfg = compose_config("train", "name=a", "paths.models=${name}/x", "model/lora=qv", "trainer.devices=[0,1]")
    config = plain(cfg)
    assert config.paths["models"] == "a/x"
    assert to_dict(config) == OmegaConf.to_container(cfg, resolve=True)
    assert to_yaml(config) == OmegaConf.to_yaml(cfg, resolve=True)

    def walk(value):
        assert is_dataclass(value) or type(value) in (dict, list, str, int, float, bool, type(None)), type(value)
        inside = vars(value) if is_dataclass(value) else value
        for each in inside.values() if isinstance(inside, dict) else inside if isinstance(inside, list) else ():
            walk(each)

    walk(config)


@pytest.mark.parametrize("is_rival", [False, True])
def test_rivals_are_judged_on_validation_and_under_a_name_that_says_so(compose_config, monkeypatch, is_rival):
    """The place of the data follows the split."""
    monkeypatch.setattr(module, "is_selecting", lambda: is_rival)
    cfg = compose_config("train", "evaluation=[scenes_caption,coco_karpathy]", "paths.data=d")
    config = plain(cfg)
    suffix, split = ("_val", "val") if is_rival else ("", "test")
    assert list(config.judged_on) == [f"scenes_caption{suffix}", f"coco_karpathy{suffix}"]
    assert {evaluation["split"] for evaluation in config.judged_on.values()} == {split}
    assert config.judged_on[f"coco_karpathy{suffix}"]["source"]["val_path"] == f"d/coco/{split}"
    assert to_dict(config) == OmegaConf.to_container(cfg, resolve=True), "the configuration itself stays"


def test_what_a_run_says_of_judging_is_what_evaluate_reads(compose_config):
    cfg = compose_config(
        "train", "decoding.max_new_tokens=${stage.max_text_tokens}", "name=a", "paths.models=${name}/x"
    )
    config = judging(cfg)
    assert config.decoding["max_new_tokens"] == cfg.stage.max_text_tokens and config.paths["models"] == "a/x"
    assert evaluations(config) == evaluations(plain(cfg)) and config.trainer == plain(cfg).trainer


def test_the_keys_of_a_source_stand_apart(configure):
    config = configure("prepare", "source=folder", "images=i")
    assert type(config) is PrepareConfig and config.source == "folder"
    assert config.keys["images"] == "i" and "source" not in config.keys and "keys" not in to_dict(config)
