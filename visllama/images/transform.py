"""Decode, resize and crop an image to the uint8 pixels that a vision encoder expects."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from visllama.images.decode import MAX_PIXELS, decode

_MAX_RATIO = 64  # of the sides; past it, "crop" cuts the longer one before the resize


INTERPOLATIONS: dict[int, str] = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear"}
"""The interpolations that are known: Pillow's number of each, and torch's name."""


@dataclass(frozen=True)
class ImageTransform:
    """Decode an image and make it the square of pixels that a vision encoder expects; call it with the image.

    The pixels are not normalised: the encoder does that itself, on its device.

    Attributes:
        size_px: Height and width of the resulting square, in pixels.
        mean: The mean of each channel, for pixels in [0, 1], with which the encoder normalises; here only the colour
            that "pad" fills with.
        std: The standard deviation of each channel, for pixels in [0, 1], with which the encoder normalises; not used
            here.
        fit: "crop" resizes the shorter side and crops the centre; "squash" resizes both sides, whatever their ratio;
            "pad" adds the mean colour on both ends of the shorter side, and resizes the square (LLaVA). It is not
            checked: any other text acts as "crop".
        resize_px: The length to which the sides are resized (for "crop", the shorter one) before the centre of
            `size_px` is cropped (DINOv2: 256, to crop 224); None is `size_px`.
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
        """Return the transform that does what an encoder's own image processor (of transformers) does.

        Args:
            processor: The image processor. Its sizes, crop, interpolation, padding, mean and standard deviation are
                read; it is not changed.

        Raises:
            ValueError: If an `ImageTransform` cannot do the same: the processor's result is not square or its crop is
                larger than the resized image, its interpolation is not in `INTERPOLATIONS`, or it pads unlike LLaVA's.
        """
        size = dict(processor.size)
        crop = dict(processor.crop_size or {}) if processor.do_center_crop else {}
        shorter = size.get("shortest_edge")
        height = shorter or size.get("height")
        width = shorter or size.get("width")
        square = crop.get("height") if crop else height

        pad = bool(getattr(processor, "do_pad", False))
        # The `do_pad` of other processors pads at the right and below, or to the largest image of a batch.
        known = not pad or type(processor).__name__.removesuffix("Pil") == "LlavaImageProcessor"
        known = known and int(processor.resample) in INTERPOLATIONS
        known = known and square == crop.get("width", square)
        if not known or height is None or height != width or not square or square > height:
            description = f"size {size}, crop {crop}, resample {processor.resample}, do_pad {pad}"
            raise ValueError(f"an image processor with {description}")

        if pad:
            fit = "pad"
        elif shorter:
            fit = "crop"
        else:
            fit = "squash"
        return cls(
            size_px=square,
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
            fit=fit,
            resize_px=height if height != square else None,
            interpolation=INTERPOLATIONS[int(processor.resample)],
        )

    def to_dict(self) -> dict:
        """Return the attributes by name; `ImageTransform(**values)` makes the same transform again."""
        return asdict(self)

    def __call__(self, image: bytes | Image.Image) -> UInt8[Tensor, "3 size_px size_px"]:
        """Decode an image, and return its square of RGB pixels from 0 to 255, not normalised.

        Args:
            image: The content of a JPEG, PNG or WebP file, or a Pillow image.

        Raises:
            BadRecord: If the image is of another format, too large, or does not decode.
        """
        pixels = decode(image)
        side = self.resize_px or self.size_px
        if self.fit == "squash":
            pixels = self._resize(pixels, side, side)
        elif self.fit == "pad":
            pixels = self._pad(pixels, side)
        else:
            pixels = self._shorten(pixels, side)

        height, width = pixels.shape[1:]
        top = (height - self.size_px) // 2
        left = (width - self.size_px) // 2
        return pixels[:, top : top + self.size_px, left : left + self.size_px].contiguous()

    def seen_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of an image that the encoder sees: left, top, right and bottom, in pixels of that image.

        With "pad", the part is a square that reaches beyond the image: left or top may be negative.

        Args:
            width: The image's width in pixels, before any resize.
            height: The image's height in pixels, before any resize.
        """
        share = self.size_px / (self.resize_px or self.size_px)
        if self.fit == "squash":
            seen_width = width * share
            seen_height = height * share
        else:
            side = max(width, height) if self.fit == "pad" else min(width, height)
            seen_width = seen_height = side * share

        left = (width - seen_width) / 2
        top = (height - seen_height) / 2
        return left, top, left + seen_width, top + seen_height

    def _resize(self, pixels: Tensor, height: int, width: int) -> Tensor:
        if pixels.shape[1:] == (height, width):
            return pixels
        return F.interpolate(pixels[None], (height, width), mode=self.interpolation, antialias=True)[0]

    def _shorten(self, pixels: Tensor, shorter: int) -> Tensor:
        """Resize the shorter side to `shorter` pixels, and the longer in proportion; cut far ends of a longer one."""
        short, long = sorted(pixels.shape[1:])
        # Rounded down, as transformers' own processors do.
        longer = shorter * long // short
        axis = 2 if pixels.shape[2] == long else 1

        # 20,000 x 1 would become 4,480,000 x 224. As many squares fall off either end before the resize as would after
        # it, so what is kept stays where it was.
        squares = max(0, (long // short - _MAX_RATIO) // 2)
        pixels = pixels.narrow(axis, squares * short, long - 2 * squares * short)
        longer -= 2 * squares * shorter
        if axis == 1:
            return self._resize(pixels, longer, shorter)
        return self._resize(pixels, shorter, longer)

    def _pad(self, pixels: Tensor, side: int) -> Tensor:
        """Add the mean colour on both ends of the shorter side, and resize the square to `side` pixels."""
        short, long = sorted(pixels.shape[1:])
        axis = 2 if pixels.shape[1] == long else 1
        shape = [long, long]

        # A row of one colour stays so: a wide picture may be resized along before rows are added, which is less work
        # and, as the kernel begins with the rows, gives the same. A tall one only where the square would be too large.
        if axis == 1:
            shape[1] = side
            pixels = self._resize(pixels, short, side)
        elif long * long > MAX_PIXELS:
            shape[0] = side
            pixels = self._resize(pixels, side, short)

        colour = torch.tensor([int(255 * mean) for mean in self.mean], dtype=torch.uint8)
        square = colour.repeat(shape[1], 1).repeat(shape[0], 1, 1).permute(2, 0, 1)
        square.narrow(axis, (long - short) // 2, short).copy_(pixels)
        return self._resize(square, side, side)
