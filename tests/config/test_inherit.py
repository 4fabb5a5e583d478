"""`init_from`: the model is that of the weights, what differs is refused by name, and training goes on from them."""

from __future__ import annotations

import json

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from tests.support import tiny
from tests.support.tiny import CONNECTORS, tiny_parts
from tests.support.verbs import assemble, train
from visllama.config.inherit import inherit_model
from visllama.errors import ConfigError
from visllama.model.weights import build_model, load_tensors, save_weights, trained_tensors

SMALL = ["trainer=cpu", "trainer.max_steps=2", "stage.global_batch_size=8", "data.num_val_records=6", "judge=false"]
STAGE_2 = ["stage=finetune", *SMALL]


def weights(folder, connector="mlp", lora=None, trained=("connector", "markers")):
    torch.manual_seed(5)
    parts = tiny_parts(connector) | ({"lora": lora} if lora else {})
    model = build_model(parts, trained).load_base_weights()
    with torch.no_grad():
        for parameter in trained_tensors(model).values():
            parameter += 0.1
    save_weights(model, parts, tiny.TEXT, folder)
    return folder


def test_the_model_is_that_of_the_weights(compose_config, tmp_path):
    """Its connector is another one than the config's default, and nobody has asked for that."""
    folder = weights(tmp_path / "w", "resampler")
    cfg = compose_config("train", *STAGE_2, f"init_from={folder}")
    assembly = assemble("train", cfg)
    assert type(assembly.model.connector).__name__ == "ResamplerConnector"
    assert OmegaConf.to_container(cfg.model.connector) == {
        "_target_": "visllama.model.connector.ResamplerConnector", **CONNECTORS["resampler"][1],
    }  # fmt: skip
    assert assembly.parts["lora"]["r"] == 8, "the adapter is the stage's: the weights have none"


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["model.connector.hidden_dim=64"], r"model\.connector\.hidden_dim=64 here, 32 there"),
        (["model/connector=resampler"], r"model\.connector\._target_=.*ResamplerConnector here, .*MLPConnector there"),
        (["model.language_model.path=visllama:other"], r"model\.language_model\.path=visllama:other here, visllama:llama there"),
        (["experiment=original_finetune", "data=scenes"], r"model\.language_model\.path=huggyllama/llama-7b here, visllama:llama there"),
    ],
)  # fmt: skip
def test_another_model_is_refused_showing_both(compose_config, tmp_path, typed, says):
    folder = weights(tmp_path / "w")
    with pytest.raises(ConfigError, match=f"init_from=.*its model is another one .*{says}"):
        inherit_model(compose_config("train", *STAGE_2, f"init_from={folder}", *typed))


def test_an_adapter_goes_on_and_another_one_is_refused(compose_config, tmp_path):
    lora = {"r": 3, "lora_alpha": 6, "target_modules": ["o_proj"]}
    folder = weights(tmp_path / "w", lora=lora, trained=("connector", "markers", "adapter"))
    cfg = compose_config("train", *STAGE_2, f"init_from={folder}")
    inherit_model(cfg)
    assert OmegaConf.to_container(cfg.model.lora) == lora
    with pytest.raises(ConfigError, match=r"model\.lora\.r=4 here, 3 there"):
        inherit_model(compose_config("train", *STAGE_2, f"init_from={folder}", "model.lora.r=4"))


def test_a_trained_base_model_cannot_be_frozen(compose_config, tmp_path):
    folder = weights(tmp_path / "w", trained=("connector", "markers", "language_model"))
    with pytest.raises(ConfigError, match=r"holds a trained language_model, which stage\.trainable=.* would freeze"):
        inherit_model(compose_config("train", *STAGE_2, f"init_from={folder}"))


def test_missing_tensors_are_refused_before_any_weight(compose_config, tmp_path):
    folder = weights(tmp_path / "w")
    tensors = load_file(folder / "visllama.safetensors")
    del tensors["connector.output.bias"]
    save_file(tensors, folder / "visllama.safetensors")
    with pytest.raises(ConfigError, match=r"do not fit .* missing connector\.output\.bias"):
        assemble("train", compose_config("train", *STAGE_2, f"init_from={folder}"))


def test_another_base_model_is_refused(compose_config, tmp_path):
    folder = weights(tmp_path / "w")
    description = json.loads((folder / "visllama.json").read_text())
    description["base_sha256"]["language_model"] = "0" * 64
    (folder / "visllama.json").write_text(json.dumps(description))
    assembly = assemble("train", compose_config("train", *STAGE_2, f"init_from={folder}"))
    with pytest.raises(ConfigError, match="trained with another language_model: its sha256 starts 000000000000"):
        load_tensors(assembly.model.load_base_weights(), folder, assembly.initial)


def test_it_starts_from_them(compose_config, tmp_path, capsys):
    """With a rate near nothing, what is saved is what was there, and the adapter beside it."""
    folder = weights(tmp_path / "w")
    train(compose_config("train", *STAGE_2, f"init_from={folder}", "optim.lr=1e-12", "optim.weight_decay=0"))
    before, after = load_file(folder / "visllama.safetensors"), load_file(tmp_path / "weights" / "visllama.safetensors")
    assert set(before) < set(after) and all("lora_" in name for name in set(after) - set(before))
    assert max((before[name] - after[name]).abs().max() for name in before) < 1e-6
    assert "which trained connector, markers" in capsys.readouterr().out
    described = json.loads((tmp_path / "weights" / "visllama.json").read_text())
    assert described["trained"] == ["connector", "markers", "adapter"]
    first = json.loads((folder / "visllama.json").read_text())
    assert described["base_sha256"] == first["base_sha256"], "the language model is the very one, adapter or not"


def test_what_a_stage_before_has_trained_is_kept_when_it_is_frozen(compose_config, tmp_path):
    folder = weights(tmp_path / "w")
    train(compose_config("train", *STAGE_2, f"init_from={folder}", "stage.trainable=[adapter]"))
    before, after = load_file(folder / "visllama.safetensors"), load_file(tmp_path / "weights" / "visllama.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_no_adapter_where_the_weights_have_one_is_an_error_that_says_so(compose_config, tmp_path):
    lora = {"r": 3, "lora_alpha": 6, "target_modules": ["o_proj"]}
    folder = weights(tmp_path / "w", lora=lora, trained=("connector", "markers", "adapter"))
    with pytest.raises(ConfigError, match=r"model\.lora adds an adapter, which stage\.trainable=.* does not train"):
        assemble("train", compose_config("train", *SMALL, f"init_from={folder}"))


def test_an_experiment_asks_for_a_model_only_where_it_names_one(compose_config, tmp_path):
    folder = weights(tmp_path / "w", "resampler")
    mine = tmp_path / "mine" / "experiment" / "quick.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("# @package _global_\noptim: {lr: 0.5}\n")
    cfg = compose_config("train", *STAGE_2, f"init_from={folder}", "experiment=quick", config_dir=tmp_path / "mine")
    inherit_model(cfg)
    assert cfg.model.connector._target_.endswith("ResamplerConnector") and cfg.optim.lr == 0.5
