"""The sizes of a model are the same on the meta device and with its weights."""

from __future__ import annotations

import torch

from tests.support.tiny import tiny_parts
from visllama.model.shapes import read_shapes
from visllama.model.weights import build_model


def test_weights_change_no_size(make_model):
    with torch.device("meta"):
        model = build_model(tiny_parts(), ("connector", "markers"))
    assert read_shapes(make_model(dtype=torch.float32)) == read_shapes(model)


def test_the_parts_that_train_are_told_apart(make_model):
    model = make_model()
    shapes = read_shapes(model)
    assert shapes.is_trained("connector") and not shapes.is_trained("language_model")
    assert shapes.numel(trained=True) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shapes.num_image_tokens == 10
