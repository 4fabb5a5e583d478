import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from visllama.data.images import ImageTransform

MEAN, STD = (0.48, 0.45, 0.40), (0.27, 0.26, 0.28)
PROCESSOR = CLIPImageProcessorPil(
    size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD
)


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Make a smooth picture with some noise, as photos are."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    base = np.stack([np.sin(x) + np.cos(y), np.sin(x + y), np.cos(x * y / 9)], -1) * 60 + 128
    return Image.fromarray(np.clip(base + rng.normal(0, 8, base.shape), 0, 255).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (100, 61), (47, 200), (33, 32), (20, 15)])
def test_equals_clips_own_processor(size):
    """At most 2 of 255 apart, 0.3 on average: torch's antialiased bicubic rounds its weights otherwise than Pillow's."""
    image = photo(*size)
    pixels = ImageTransform.from_processor(PROCESSOR)(image)
    expected = PROCESSOR(image, return_tensors="pt")["pixel_values"][0]
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    difference = (pixels - (expected * std + mean) * 255).abs()
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.uint8
    assert difference.max() <= 2.01 and difference.mean() < 0.3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode):
    assert ImageTransform(16, MEAN, STD)(photo(40, 30, mode)).shape == (3, 16, 16)


def test_values_come_from_the_processor():
    assert ImageTransform.from_processor(PROCESSOR).to_dict() == {"size_px": 32, "mean": MEAN, "std": STD}
