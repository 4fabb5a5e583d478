"""`visllama.load(weights)`: a trained model to use, pictures in and text out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from omegaconf import OmegaConf
from PIL import Image

from visllama.config import conf_dir
from visllama.data.images import read_image
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.runner import sample_maker
from visllama.hardware import find_device
from visllama.model.visllama import VisLlama
from visllama.model.weights import load_weights

Picture = str | Path | Image.Image


class Pipeline:
    """A trained model.

    Args:
        model: With all its weights.
        text: `prompt` and `max_text_tokens` of its training.
        batch_size: Pictures at once; it changes speed, not text.
    """

    def __init__(self, model: VisLlama, text: Mapping, batch_size: int = 32) -> None:
        self.model, self.batch_size = model.eval(), batch_size
        self.maker = sample_maker(model, **text)

    def caption(self, images: Picture | Sequence[Picture], **decoding) -> str | list[str]:
        """Describe pictures.

        Args:
            images: One (a path or a PIL image), or a list.
            decoding: As transformers' `generate` takes it; greedy and at most 40 tokens unless told otherwise.

        Returns:
            The caption of one picture, or a list of them.

        Raises:
            ConfigError: If a picture cannot be read.
        """
        if isinstance(images, Picture):
            return self.caption([images], **decoding)[0]
        captioner = Captioner(self.maker, _greedy() | decoding, self.batch_size)
        records = [
            {"key": str(i), "image": image if isinstance(image, Image.Image) else read_image(image, str(image))}
            for i, image in enumerate(images)
        ]
        return captioner(self.model, records)


def _greedy() -> dict:
    return OmegaConf.to_container(OmegaConf.load(conf_dir() / "evaluation" / "decoding" / "greedy.yaml"))


def load(
    weights: str | Path,
    plugins: Sequence[str] = (),
    models: str | Path | None = None,
    accelerator: str = "auto",
    dtype: torch.dtype | None = None,
) -> Pipeline:
    """Load trained weights to use them.

    Args:
        weights: The `weights/` folder of a run.
        plugins: Your packages, where a part of the model is your own.
        models: Where base models lie; None is `VISLLAMA_MODELS`, else `models`.
        accelerator: "auto" (cuda, else mps, else cpu), or one of them.
        dtype: Of the frozen weights; None is bf16 on cuda, else fp32.

    Raises:
        ConfigError: If the folder is none of ours, or does not fit its base models.
    """
    device = find_device(accelerator)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    models = models or os.environ.get("VISLLAMA_MODELS", "models")
    model, description = load_weights(Path(weights), dtype, plugins=plugins, models=models)
    return Pipeline(model.to(device), description["text"])
