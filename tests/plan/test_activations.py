"""Activations: near what torch's tracker counts in a real step."""

from __future__ import annotations

import pytest

from tests.support.plans import job
from tests.support.real_steps import ALL, QV, STAGE_1, STAGE_2
from visllama.model.shapes import read_shapes
from visllama.plan.memory import memory
from visllama.plan.model import build_shapes


@pytest.mark.parametrize(("lora", "trainable"), [(None, STAGE_1), (QV, STAGE_2)], ids=["pretrain", "finetune"])
def test_activations_are_near_what_torch_tracks(check_against_tracker, parts, lora, trainable):
    check_against_tracker(parts(lora), trainable)


@pytest.mark.slow
@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize(
    "precision",
    ["bf16-mixed", *(pytest.param(p, marks=pytest.mark.proof) for p in ("32-true", "bf16-true", "64-true"))],
)
@pytest.mark.parametrize(
    ("lora", "trainable"),
    [(None, STAGE_1), (QV, STAGE_2), (ALL, STAGE_2), (None, (*STAGE_1, "language_model"))],
    ids=["pretrain", "qv", "all_linear", "whole"],
)
def test_activations_in_every_precision_and_with_checkpointing(
    check_against_tracker, parts, lora, trainable, precision, recomputes
):
    found = read_shapes(build_shapes(parts(lora), trainable))
    moment = memory(found, job(precision, recomputes=recomputes), 48).moment
    check_against_tracker(parts(lora), trainable, precision, recomputes=recomputes, moment=moment)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    ("kind", "arguments", "trainable"),
    [
        ("MLPConnector", {"num_image_tokens": 10, "hidden_dim": None}, STAGE_1),
        ("TransformerConnector", {"num_image_tokens": 10, "hidden_dim": 128, "num_heads": 4}, STAGE_1),
        ("ResamplerConnector", {"num_image_tokens": 10, "hidden_dim": 128, "num_heads": 4}, STAGE_1),
        ("PatchMLPConnector", {"num_image_tokens": None}, STAGE_1),
        ("PatchMLPConnector", {"num_image_tokens": None}, (*STAGE_1, "vision_encoder")),
    ],
)
def test_activations_with_every_connector(check_against_tracker, parts, kind, arguments, trainable, precision):
    check_against_tracker(parts(None, kind, **arguments), trainable, precision)
