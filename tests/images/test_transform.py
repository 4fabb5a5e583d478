"""Pixels as the encoders' own processors make them."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    DeiTImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaNextImageProcessorPil,
    SiglipImageProcessorPil,
)

from tests.support.photos import MEAN, STD, photo
from visllama.images.transform import ImageTransform

NORMAL = {"image_mean": MEAN, "image_std": STD}


def processors(side: int) -> dict:
    """Make encoders' own image processors, each of a way to fit."""
    shorter, square = {"shortest_edge": side}, {"height": side, "width": side}
    larger = side * 5 // 4
    return {
        "clip": CLIPImageProcessorPil(size=shorter, crop_size=square, **NORMAL),
        "siglip": SiglipImageProcessorPil(size=square, **NORMAL),
        "dinov2": BitImageProcessorPil(size={"shortest_edge": larger}, crop_size=square, resample=3, **NORMAL),
        "bilinear": SiglipImageProcessorPil(size=square, resample=2, **NORMAL),
        "deit": DeiTImageProcessorPil(size={"height": larger, "width": larger}, crop_size=square, **NORMAL),
        "llava": LlavaImageProcessorPil(size=shorter, crop_size=square, do_pad=True, **NORMAL),
    }


PROCESSORS = {side: processors(side) for side in (32, 224)}


# Of the picture, then how far the pixels may be apart on average. Torch's kernel rounds its weights otherwise than
# Pillow's: below 0.1 where it makes more pixels than there were, below 0.02 where fewer. Where the height shrinks more
# than the width, Pillow 13 begins with the columns and torch, as Pillow before it, with the rows: below 0.3.
SMALL = [(32, 32), (64, 64), (100, 61), (33, 32), (20, 15), (45, 5), (1, 1), (7, 1), (1, 7), (50, 3), (321, 214)]
GEOMETRIES = [
    *[(32, size, 0.1) for size in SMALL],
    *[(32, size, 0.3) for size in [(47, 200), (3, 50), (1, 100), (30, 2000)]],
    *[(224, size, 0.02) for size in [(640, 480), (480, 640), (642, 214), (4000, 30)]],
    *[(224, size, 0.1) for size in [(64, 64), (225, 224), (1, 7), (300, 1)]],
]


@pytest.mark.parametrize(("side", "size", "mean_limit"), GEOMETRIES)
@pytest.mark.parametrize("encoder", PROCESSORS[32])
def test_equals_the_encoders_own_processor(encoder, side, size, mean_limit):
    """At most 2 of 255 apart: each of the two passes rounds, and both may round the other way."""
    image, processor = photo(*size), PROCESSORS[side][encoder]
    pixels = ImageTransform.from_processor(processor)(image)
    expected = torch.as_tensor(np.asarray(processor(image, return_tensors="np")["pixel_values"][0]))
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    difference = (pixels - (expected * std + mean) * 255).abs()
    assert pixels.shape == (3, side, side) and pixels.dtype == torch.uint8
    assert difference.max() <= 2.01 and difference.mean() < mean_limit


def test_values_come_from_the_processor():
    common = {"size_px": 32, "mean": MEAN, "std": STD, "fit": "crop", "resize_px": None, "interpolation": "bicubic"}
    assert {name: ImageTransform.from_processor(made).to_dict() for name, made in PROCESSORS[32].items()} == {
        "clip": common,
        "siglip": common | {"fit": "squash"},
        "dinov2": common | {"resize_px": 40},
        "bilinear": common | {"fit": "squash", "interpolation": "bilinear"},
        "deit": common | {"fit": "squash", "resize_px": 40},
        "llava": common | {"fit": "pad"},
    }


@pytest.mark.parametrize(
    ("processor", "match"),
    [
        (SiglipImageProcessorPil(size={"height": 32, "width": 48}), "width"),
        (CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 40, "width": 40}), "crop"),
        (SiglipImageProcessorPil(resample=0), "resample 0"),
        (LlavaNextImageProcessorPil(), "do_pad True"),
    ],
)
def test_a_processor_that_does_what_we_cannot_is_refused(processor, match):
    with pytest.raises(ValueError, match=match):
        ImageTransform.from_processor(processor)


@pytest.mark.parametrize("size", [(4000, 30), (30, 4000), (2001, 15)])
def test_cutting_a_thin_picture_before_the_resize_changes_nothing(monkeypatch, size):
    """At most 2 of 255: the place of a pixel differs by under 1/64 of one, as the longer side is rounded down."""
    transform, image = ImageTransform(224, MEAN, STD), photo(*size)
    cut = transform(image).int()
    monkeypatch.setattr("visllama.images.transform._MAX_RATIO", 10**6)
    difference = (cut - transform(image)).abs()
    assert difference.max() <= 2 and difference.float().mean() < 0.02


@pytest.mark.parametrize("size", [(2000, 3), (3, 2000)])
def test_padding_after_the_first_resize_changes_nothing(monkeypatch, size):
    """At most 2 of 255: the two passes round in the other order."""
    transform, image = ImageTransform(64, MEAN, STD, "pad"), photo(*size)
    whole = transform(image).int()
    monkeypatch.setattr("visllama.images.transform.MAX_PIXELS", 10**4)
    assert (whole - transform(image)).abs().max() <= 2


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("resize_px", [None, 32])
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (64, 64)])
def test_the_box_that_is_seen_is_what_comes_out(fit, resize_px, size):
    """A picture of two ramps tells by its colours where each pixel that comes out has been."""
    width, height = size
    ramps = np.zeros((height, width, 3), np.uint8)
    ramps[..., 0] = (2 * np.arange(width) + 20)[None]
    ramps[..., 1] = (2 * np.arange(height) + 20)[:, None]
    transform = ImageTransform(24, (0.0,) * 3, (1.0,) * 3, fit, resize_px, "bilinear")
    seen = transform(Image.fromarray(ramps)).numpy().astype(float)
    left, top, right, bottom = transform.seen_box(width, height)

    inside = (slice(10, 14), slice(10, 14))  # away from edges and from what was padded
    columns = left + (np.arange(24) + 0.5) / 24 * (right - left) - 0.5
    rows = top + (np.arange(24) + 0.5) / 24 * (bottom - top) - 0.5
    # Colours are whole numbers, two a pixel, and a crop's place is rounded to a resized pixel.
    pixel = max(right - left, bottom - top) / 24
    assert np.abs((seen[0][inside] - 20) / 2 - columns[None, 10:14]).max() < 0.75 + pixel / 2
    assert np.abs((seen[1][inside] - 20) / 2 - rows[10:14, None]).max() < 0.75 + pixel / 2
