"""Data of scenes for a run."""

from __future__ import annotations

from tests.support import tiny
from visllama.data.scenes.source import ScenesSource


def data_of(model, micro_batch_size=64, num_steps=8, val=5):
    train = {"scenes": ScenesSource("train", 40, 1)}
    return tiny.data_of(model, train, ScenesSource("val", val, 1), 12, num_steps, micro_batch_size)
