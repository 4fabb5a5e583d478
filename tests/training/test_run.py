"""What a run says at its end, and in which precision it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.verbs import train
from visllama.config.plain import plain
from visllama.model.weights import build_model, trained_tensors
from visllama.training.assembly import model_parts
from visllama.training.run import evaluate_overrides


def test_the_next_command_judges_as_the_run_was_judged(compose_config):
    """On the validation tars and by the beams of the run, not on its training tars, greedily."""
    cfg = compose_config(
        *(
            "train",
            "data=shards",
            "data.sources.shards.path=a.tar",
            "data.sources.shards.val_path=b.tar",
            "optim.lr=0.1",
        ),
        *("evaluation/decoding=beam5", "evaluation.shards_caption.controls=[]", "paths.models=/m", "plugins=[os]"),
    )
    assert evaluate_overrides(plain(cfg), Path("run")) == [
        "weights=run/weights",
        "evaluation=[shards_caption]",
        "evaluation.shards_caption.source.path=a.tar",
        "evaluation.shards_caption.source.val_path=b.tar",
        "evaluation.shards_caption.source.val_fraction=0.01",
        "evaluation/decoding=beam5",
        "evaluation.shards_caption.controls=[]",
        "paths.models=/m",
        "plugins=[os]",
    ]


def test_the_embedded_world_needs_its_weights_alone(configure):
    assert evaluate_overrides(configure("train"), Path("a run")) == ["weights='a run/weights'"]


def test_a_rival_that_was_not_judged_yet_is_judged_on_its_validation_records(compose_config, monkeypatch):
    """Test is for the best job alone, and the place of the records follows the split."""
    monkeypatch.setattr("visllama.config.plain.is_selecting", lambda: True)
    typed = ("evaluation=[coco_karpathy]", "judge=false", "paths.data=d")
    words = evaluate_overrides(plain(compose_config("train", *typed)), Path("run"))
    assert "evaluation.coco_karpathy.split=val" in words
    assert "evaluation.coco_karpathy.source.val_path=d/coco/val" in words


@pytest.mark.parametrize(
    "trainable",
    [
        ["stage.trainable=[connector,markers]"],
        ["stage.trainable=[connector,markers,adapter]", "model/lora=qv"],
        ["stage.trainable=[connector,markers,language_model]"],
    ],
    ids=["connector", "adapter", "language_model"],
)
def test_what_trains_is_fp32_beside_frozen_weights_in_bf16(compose_config, tmp_path, trainable):
    """At 2e-5 an update is less than half of what a bf16 number of the connector's size can change by."""
    cfg = compose_config(
        "train", *trainable, "trainer=cpu", "trainer.precision=bf16-true", "optim.lr=2e-5", "trainer.max_steps=2",
        "stage.global_batch_size=8", "data.num_val_records=4", "judge=false", "model.connector.hidden_dim=64",
    )  # fmt: skip
    train(cfg)
    (checkpoint,) = sorted((tmp_path / "checkpoints").glob("step_*"))[-1:]
    (file,) = checkpoint.glob("shard-*")
    state = load_file(file)
    assert any(name.startswith("optimizer/exp_avg/") for name in state)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}

    torch.manual_seed(cfg.seed)
    before = trained_tensors(build_model(model_parts(plain(cfg)), cfg.stage.trainable).load_base_weights())
    after = load_file(tmp_path / "weights" / "visllama.safetensors")
    part = "language_model" if "language_model" in cfg.stage.trainable else "connector"
    names = [name for name in after if name.startswith(part) and name.endswith("weight") and "embed" not in name]
    moved = torch.cat([(after[name] != before[name]).flatten() for name in names])
    assert moved.float().mean() > 0.99, "measured: 1.0; with the connector in bf16 0.1"
