from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from rich.console import Console

from tests.tiny import maker_of
from tests.training.test_module import data_of
from visllama.config import ConfigError
from visllama.evaluation.captioner import Captioner
from visllama.training.callbacks import (
    FrozenWeights,
    SameEverywhere,
    SampleTexts,
    build_callbacks,
    data_table,
    parts_table,
)
from visllama.training.checkpoint import name_of
from visllama.training.saving import Saving


def shown(table, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_start_up_table_fits_80_columns_and_tells_each_part(make_model):
    model = make_model(dtype=torch.float32)
    text = shown(parts_table(model))
    for word in (
        "vision_encoder",
        "connector",
        "markers",
        "language_model",
        "trained",
        "frozen",
        "float32",
        "LlamaForCausalLM",
    ):
        assert word in text, word
    assert f"{sum(p.numel() for p in model.language_model.parameters()):,}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_data_table(make_model):
    text = shown(data_table(data_of(make_model()), micro_batch_size=5, num_ranks=2, max_steps=8))
    row = next(line for line in text.splitlines() if "scenes" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["scenes", "40", "40", "100.0%", "96", "2.40"]
    told = " ".join(text.split())
    assert "8 steps of 12 samples, 2 ranks, micro-batches of up to 5; 5 validation records" in told
    assert max(map(len, text.splitlines())) <= 80


def test_a_changed_bit_in_a_frozen_part_stops_the_run(make_model):
    module = SimpleNamespace(model=make_model(dtype=torch.float32))
    watch = FrozenWeights()
    watch.on_fit_start(None, module)
    watch.on_fit_end(None, module)
    with torch.no_grad():
        module.model.language_model.get_input_embeddings().weight[5, 5] += 1e-3
    with pytest.raises(RuntimeError, match="frozen weights changed in training: language_model"):
        watch.on_fit_end(None, module)


def test_sample_captions_are_shown(make_model, capsys):
    model = make_model(dtype=torch.float32).eval()
    trainer = SimpleNamespace(datamodule=data_of(model), is_global_zero=True, global_step=7)
    SampleTexts({"scenes": Captioner(maker_of(model), {"max_new_tokens": 5}, 2)}, 2).on_validation_epoch_end(
        trainer, SimpleNamespace(model=model)
    )
    said = capsys.readouterr().out
    assert "step 7" in said and "val-000001:" in said


def test_checkpoints_have_names_that_hydra_can_parse(tmp_path, compose_config):
    last = build_callbacks(compose_config("train"), tmp_path, None)[-1]
    assert isinstance(last, Saving) and name_of(1200) == "step_00001200"


@pytest.mark.parametrize("other", ["same", "another"])
def test_ranks_of_different_configs_are_refused(compose_config, monkeypatch, other):
    cfg = compose_config("train", "optim.lr=0.5")
    theirs = OmegaConf.to_yaml(cfg, resolve=True)
    theirs = theirs.replace("lr: 0.5", "lr: 0.25") if other == "another" else theirs
    monkeypatch.setattr(
        dist, "all_gather_object", lambda found, own, group: found.__setitem__(slice(None), [own, theirs])
    )
    trainer = SimpleNamespace(world_size=2, strategy=SimpleNamespace(control=None))
    if other == "same":
        SameEverywhere(cfg).setup(trainer, None, "fit")
        return
    with pytest.raises(ConfigError, match=r"rank 1 was given another config than rank 0: .*lr: 0\.25; .*lr: 0\.5"):
        SameEverywhere(cfg).setup(trainer, None, "fit")
