"""From a decoded image to the pixels that a vision encoder expects: resized, cropped, uint8."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from visllama.images.decode import MAX_PIXELS, decode

_MAX_RATIO = 64  # of the sides; past it, "crop" cuts the longer one before the resize


INTERPOLATIONS = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear"}


@dataclass(frozen=True)
class ImageTransform:
    """Resize an image to an encoder's square; the encoder normalises, on the device.

    Attributes:
        size_px: Height and width of what comes out.
        mean, std: Of the encoder's training data, for pixels in [0, 1]; carried for the encoder.
        fit: "crop" resizes the shorter side and crops the centre; "squash" resizes both sides, whatever their ratio;
            "pad" adds the mean colour on both ends of the shorter side, and resizes the square (LLaVA).
        resize_px: What the shorter side is resized to before the crop (DINOv2: 256, to crop 224); None is `size_px`.
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
            ValueError: If it does what we cannot: a side that is not square, another interpolation or padding.
        """
        size = dict(processor.size)
        crop = dict(processor.crop_size or {}) if processor.do_center_crop else {}
        shorter = size.get("shortest_edge")
        height, width = (shorter or size.get(side) for side in ("height", "width"))
        square = (crop or {"height": height}).get("height")
        # Others' `do_pad` pads otherwise: at the right and below, or to the largest of a batch.
        pad = bool(getattr(processor, "do_pad", False))
        known = not pad or type(processor).__name__.removesuffix("Pil") == "LlavaImageProcessor"
        known = known and int(processor.resample) in INTERPOLATIONS and square == crop.get("width", square)
        if not known or height is None or height != width or not square or square > height:
            found = f"size {size}, crop {crop}, resample {processor.resample}, do_pad {pad}"
            raise ValueError(f"an image processor with {found}")
        return cls(
            size_px=square,
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
            fit="pad" if pad else "crop" if shorter else "squash",
            resize_px=height if height != square else None,
            interpolation=INTERPOLATIONS[int(processor.resample)],
        )

    def to_dict(self) -> dict:
        return asdict(self)

    def __call__(self, image: bytes | Image.Image) -> Tensor:
        """Return `(3, size_px, size_px)` uint8.

        Raises:
            BadRecord: As `decode` does.
        """
        pixels, side = decode(image), self.resize_px or self.size_px
        if self.fit == "squash":
            pixels = self._resize(pixels, side, side)
        else:
            pixels = self._pad(pixels, side) if self.fit == "pad" else self._shorten(pixels, side)
        top, left = ((side - self.size_px) // 2 for side in pixels.shape[1:])
        return pixels[:, top : top + self.size_px, left : left + self.size_px].contiguous()

    def seen_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return which part of a picture comes out: left, top, right and bottom, in pixels of the picture.

        With "pad" it reaches beyond the picture.
        """
        share = self.size_px / (self.resize_px or self.size_px)
        if self.fit == "squash":
            seen_width, seen_height = width * share, height * share
        else:
            side = max(width, height) if self.fit == "pad" else min(width, height)
            seen_width = seen_height = side * share
        left, top = (width - seen_width) / 2, (height - seen_height) / 2
        return left, top, left + seen_width, top + seen_height

    def _resize(self, pixels: Tensor, height: int, width: int) -> Tensor:
        if pixels.shape[1:] == (height, width):
            return pixels
        return F.interpolate(pixels[None], (height, width), mode=self.interpolation, antialias=True)[0]

    def _shorten(self, pixels: Tensor, shorter: int) -> Tensor:
        """Resize the shorter side to this, and the longer one in proportion."""
        short, long = sorted(pixels.shape[1:])
        # Rounded down, as transformers' own processors do.
        longer, axis = shorter * long // short, 1 + (pixels.shape[2] == long)
        # 20,000 x 1 would become 4,480,000 x 224. As many squares fall off either end before the resize as would after
        # it, so what is kept stays where it was.
        squares = max(0, (long // short - _MAX_RATIO) // 2)
        pixels = pixels.narrow(axis, squares * short, long - 2 * squares * short)
        longer -= 2 * squares * shorter
        return self._resize(pixels, *((longer, shorter) if axis == 1 else (shorter, longer)))

    def _pad(self, pixels: Tensor, side: int) -> Tensor:
        """Make it a square of this side, the mean colour beside it."""
        short, long = sorted(pixels.shape[1:])
        axis = 1 + (pixels.shape[1] == long)
        shape = [long, long]
        # A row of one colour stays so: a wide picture may be resized along before rows are added, which is less work
        # and, as the kernel begins with the rows, gives the same. A tall one only where the square would be too large.
        if axis == 1 or long * long > MAX_PIXELS:
            shape[2 - axis] = side
            pixels = self._resize(pixels, *((short, side) if axis == 1 else (side, short)))
        colour = torch.tensor([int(255 * mean) for mean in self.mean], dtype=torch.uint8)
        square = colour.repeat(shape[1], 1).repeat(shape[0], 1, 1).permute(2, 0, 1)
        square.narrow(axis, (long - short) // 2, short).copy_(pixels)
        return self._resize(square, side, side)
