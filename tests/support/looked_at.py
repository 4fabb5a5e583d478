"""A tiny connector that is looked at: its model, and what is found of it on a few scenes."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support.tiny import TEXT, tiny_parts
from visllama.data.scenes.source import ScenesSource
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.runner import sample_maker
from visllama.inspect.connector.pictures import Pictures, read_pictures
from visllama.inspect.connector.run import look
from visllama.inspect.connector.study import ConnectorStudy
from visllama.model.visllama import VisLlama
from visllama.model.weights import build_model, save_weights

EVALUATION = {"split": "test", "prompt": None, "template": None, "decoding": {}, "batch_size": 4}
DECODING = {"max_new_tokens": 4}


def loud_model(connector: str = "mlp") -> VisLlama:
    """Return a tiny model that was not trained, and writes something else for each picture."""
    torch.manual_seed(0)
    model = build_model(tiny_parts(connector), ("connector", "markers")).load_base_weights(torch.float32)
    for parameter in model.connector.parameters():
        parameter.data *= 3
    return model.eval()


def save_loud(folder: Path, connector: str = "mlp") -> Path:
    """Write the weights of a `loud_model`."""
    save_weights(loud_model(connector), tiny_parts(connector), TEXT, folder)
    return folder


def captioner_of(model: VisLlama) -> Captioner:
    return Captioner(sample_maker(model, TEXT), DECODING, EVALUATION["batch_size"])


def pictures(num_pictures: int = 6) -> Pictures:
    """Return scenes, of the size of a batch and a half."""
    return read_pictures("scenes_caption", EVALUATION, ScenesSource("test", num_pictures, 5), num_pictures)


def study_of(model: VisLlama, chosen: Pictures | None = None, num_shown: int = 2) -> ConnectorStudy:
    """Look at a model's connector on a few scenes."""
    about = {
        "weights": "RUN/weights", "connector": {"kind": type(model.connector).__name__, "arguments": {}},
        "num_image_tokens": model.num_image_tokens, "is_patch_grid": False, "evaluation": "scenes_caption",
        "split": "test", "n": 6,
    }  # fmt: skip
    return look(model, captioner_of(model), chosen or pictures(), num_shown, about)
