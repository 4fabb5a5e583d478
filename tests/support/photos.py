"""Pictures as photos are, and the files of pictures."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

MEAN, STD = (0.48, 0.45, 0.40), (0.27, 0.26, 0.28)
"""Of the photos that an encoder was trained on."""


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Make a smooth picture with some noise, as photos are."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    base = np.stack([np.sin(x) + np.cos(y), np.sin(x + y), np.cos(x * y / 9)], -1) * 60 + 128
    return Image.fromarray(np.clip(base + rng.normal(0, 8, base.shape), 0, 255).astype(np.uint8)).convert(mode)


def saved(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
