"""From an image to the pixels that a vision encoder expects: RGB, resized, cropped, uint8."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from visllama.config import ConfigError

SUFFIXES = ("jpg", "jpeg", "png", "webp")
_FORMATS = ("JPEG", "PNG", "WEBP")
_INTERPOLATIONS = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear"}


def read_image(file: str | Path | BinaryIO, name: str) -> Image.Image:
    """Decode a picture, upright.

    Args:
        file: Where its bytes are.
        name: What to call it in an error.

    Raises:
        ConfigError: If it cannot be decoded, or is no JPEG, PNG or WebP.
    """
    try:
        image = Image.open(file, formats=_FORMATS)
        image.load()
        return ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise ConfigError(
            f"{name}: not to be read as {', '.join(_FORMATS)} ({error}): mend the file, or leave it out"
        ) from error


@dataclass(frozen=True)
class ImageTransform:
    """Resize an image to an encoder's square; the encoder normalises, on the device.

    Attributes:
        size_px: Height and width of what comes out.
        mean, std: Of the encoder's training data, for pixels in [0, 1]; carried for the encoder.
        fit: "crop" resizes the shorter side and crops the centre; "squash" resizes both sides, whatever their ratio.
        resize_px: What "crop" resizes the shorter side to (DINOv2: 256, to crop 224); None is `size_px`.
        interpolation: "bicubic" or "bilinear", antialiased.
    """

    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str = "crop"
    resize_px: int | None = None
    interpolation: str = "bicubic"

    @classmethod
    def from_processor(cls, processor) -> ImageTransform:
        """Read the values from an encoder's own (transformers) image processor.

        Raises:
            ValueError: If it does what we cannot: a side that is not square, another interpolation.
        """
        size = dict(processor.size)
        crop = dict(processor.crop_size or {}) if processor.do_center_crop else {}
        height, width = (crop or size).get("height"), (crop or size).get("width")
        shorter = size.get("shortest_edge")
        if (height, width) == (None, None):
            height = width = shorter
        if height != width or height is None or int(processor.resample) not in _INTERPOLATIONS:
            raise ValueError(f"an image processor with size {size}, crop {crop}, resample {processor.resample}")
        return cls(
            size_px=height,
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
            fit="crop" if shorter else "squash",
            resize_px=shorter if shorter != height else None,
            interpolation=_INTERPOLATIONS[int(processor.resample)],
        )

    def to_dict(self) -> dict:
        return asdict(self)

    def __call__(self, image: Image.Image) -> Tensor:
        """Give `(3, size_px, size_px)` uint8."""
        array = np.array(image.convert("RGB"))
        pixels = torch.from_numpy(array).permute(2, 0, 1)
        height, width = pixels.shape[1:]
        if self.fit == "squash":
            resized = self.size_px, self.size_px
        else:
            shorter = self.resize_px or self.size_px
            scale = shorter / min(height, width)
            # `int` and not `round`: as transformers' own processors do.
            resized = tuple(max(shorter, int(side * scale)) for side in (height, width))
        if resized != (height, width):
            pixels = F.interpolate(pixels[None], resized, mode=self.interpolation, antialias=True)[0]
            height, width = resized
        top, left = (height - self.size_px) // 2, (width - self.size_px) // 2
        return pixels[:, top : top + self.size_px, left : left + self.size_px].contiguous()
