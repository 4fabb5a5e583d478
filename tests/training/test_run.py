"""What a run says at its end."""

from __future__ import annotations

from pathlib import Path

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
    assert evaluate_overrides(cfg, Path("run")) == [
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


def test_the_embedded_world_needs_its_weights_alone(compose_config):
    assert evaluate_overrides(compose_config("train"), Path("a run")) == ["weights='a run/weights'"]
