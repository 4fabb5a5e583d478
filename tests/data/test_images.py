import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, SiglipImageProcessorPil

from visllama.config import ConfigError
from visllama.data.images import ImageTransform, read_image

MEAN, STD = (0.48, 0.45, 0.40), (0.27, 0.26, 0.28)
NORMAL, SQUARE = {"image_mean": MEAN, "image_std": STD}, {"height": 32, "width": 32}
PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE, **NORMAL),
    "siglip": SiglipImageProcessorPil(size=SQUARE, **NORMAL),
    "dinov2": BitImageProcessorPil(size={"shortest_edge": 40}, crop_size=SQUARE, resample=3, **NORMAL),
    "bilinear": SiglipImageProcessorPil(size=SQUARE, resample=2, **NORMAL),
}


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Make a smooth picture with some noise, as photos are."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    base = np.stack([np.sin(x) + np.cos(y), np.sin(x + y), np.cos(x * y / 9)], -1) * 60 + 128
    return Image.fromarray(np.clip(base + rng.normal(0, 8, base.shape), 0, 255).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (100, 61), (47, 200), (33, 32), (20, 15)])
@pytest.mark.parametrize("encoder", PROCESSORS)
def test_equals_the_encoders_own_processor(encoder, size):
    """At most 2 of 255 apart, 0.3 on average: torch's antialiased bicubic rounds its weights otherwise than Pillow's."""
    image, processor = photo(*size), PROCESSORS[encoder]
    pixels = ImageTransform.from_processor(processor)(image)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    difference = (pixels - (expected * std + mean) * 255).abs()
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.uint8
    assert difference.max() <= 2.01 and difference.mean() < 0.3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode):
    assert ImageTransform(16, MEAN, STD)(photo(40, 30, mode)).shape == (3, 16, 16)


def test_values_come_from_the_processor():
    common = {"size_px": 32, "mean": MEAN, "std": STD}
    assert {name: ImageTransform.from_processor(processor).to_dict() for name, processor in PROCESSORS.items()} == {
        "clip": common | {"fit": "crop", "resize_px": None, "interpolation": "bicubic"},
        "siglip": common | {"fit": "squash", "resize_px": None, "interpolation": "bicubic"},
        "dinov2": common | {"fit": "crop", "resize_px": 40, "interpolation": "bicubic"},
        "bilinear": common | {"fit": "squash", "resize_px": None, "interpolation": "bilinear"},
    }


def test_a_processor_that_makes_no_square_is_refused():
    with pytest.raises(ValueError, match="width"):
        ImageTransform.from_processor(SiglipImageProcessorPil(size={"height": 32, "width": 48}))


def test_a_picture_is_read_upright(tmp_path):
    """A photo taken with the camera on its side says so in its EXIF tag 274."""
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", "a.jpg").size == (20, 40)


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", b"\xff\xd8\xff\xe0 cut"]
)
def test_what_is_no_picture_is_named(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.jpg: not to be read as JPEG, PNG, WEBP"):
        read_image(tmp_path / "a.jpg", "a.jpg")


def test_a_truncated_picture_is_named(tmp_path):
    photo(64, 64).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:600])
    with pytest.raises(ConfigError, match=r"[Tt]runcated"):
        read_image(tmp_path / "a.jpg", "a.jpg")
