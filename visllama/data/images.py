"""From an image to the pixels that a vision encoder expects: RGB, resized, cropped, uint8."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class ImageTransform:
    """Resize the shorter side to `size_px` and crop the centre; the encoder normalises, on the device.

    Attributes:
        size_px: Height and width of what comes out.
        mean, std: Of the encoder's training data, for pixels in [0, 1]; carried for the encoder.
    """

    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_processor(cls, processor) -> ImageTransform:
        """Read the values from an encoder's own (transformers) image processor."""
        crop, size = dict(processor.crop_size or {}), dict(processor.size)
        return cls(
            crop.get("height") or size.get("shortest_edge") or size["height"],
            tuple(processor.image_mean),
            tuple(processor.image_std),
        )

    def to_dict(self) -> dict:
        return asdict(self)

    def __call__(self, image: Image.Image) -> Tensor:
        """Give `(3, size_px, size_px)` uint8."""
        array = np.array(image.convert("RGB"))
        pixels = torch.from_numpy(array).permute(2, 0, 1)
        height, width = pixels.shape[1:]
        if min(height, width) != self.size_px:
            scale = self.size_px / min(height, width)
            # `int` and not `round`: as transformers' own processors do.
            height, width = (max(self.size_px, int(side * scale)) for side in (height, width))
            pixels = F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0]
        top, left = (height - self.size_px) // 2, (width - self.size_px) // 2
        return pixels[:, top : top + self.size_px, left : left + self.size_px].contiguous()
