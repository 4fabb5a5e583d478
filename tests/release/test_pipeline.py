"""`visllama.load(weights).caption(images)`."""

from __future__ import annotations

import pytest

import visllama
from tests.tiny import maker_of, tiny_parts
from visllama.config import ConfigError
from visllama.evaluation.captioner import Captioner
from visllama.model.weights import save_weights


@pytest.fixture
def weights(make_model, tmp_path):
    import torch

    model = make_model(dtype=torch.float32)
    save_weights(model, tiny_parts(), {"prompt": "", "max_text_tokens": 256}, tmp_path / "weights")
    return model, tmp_path / "weights"


def test_says_what_the_trained_model_said(weights, records, tmp_path):
    model, folder = weights
    expected = Captioner(maker_of(model), {"max_new_tokens": 40}, 8)(model.eval(), records)
    pipeline = visllama.load(folder, accelerator="cpu")
    images = [record["image"] for record in records]
    assert pipeline.caption(images) == expected and len(set(expected)) > 1
    images[0].save(tmp_path / "a.png")
    assert pipeline.caption(tmp_path / "a.png") == pipeline.caption(str(tmp_path / "a.png")) == expected[0]


def test_decoding_can_be_told(weights, records):
    pipeline = visllama.load(weights[1], accelerator="cpu")
    assert len(pipeline.caption(records[0]["image"], max_new_tokens=1).split()) <= 1


def test_what_is_no_picture_is_named(weights, tmp_path):
    pipeline = visllama.load(weights[1], accelerator="cpu")
    (tmp_path / "a.png").write_text("words")
    with pytest.raises(ConfigError, match=r"a\.png: not to be read"):
        pipeline.caption(tmp_path / "a.png")
