"""From an image to the pixels that a vision encoder expects: RGB, upright, resized, cropped, uint8."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from torch import Tensor
from torch.nn import functional as F

from visllama.data.faults import BadRecord
from visllama.errors import ConfigError

try:
    import simplejpeg  # the extra `fast`
except ImportError:
    simplejpeg = None

SUFFIXES = ("jpg", "jpeg", "png", "webp")
MAX_PIXELS, MAX_SIDE_PX = 50_000_000, 65_535
"""Past either a picture is a bad record. Only a PNG can be longer; its other side, resized, would fill the memory."""
_MAX_SCANS = 100  # of MAX_PIXELS, about 1 s; a progressive JPEG has 10, a bomb thousands
_MAX_RATIO = 64  # of the sides; past it, "crop" cuts the longer one before the resize
# Pillow's classes and not `Image.open`, which tries them in turn and, of a bomb, only warns.
_JPEG = b"\xff\xd8\xff"
_FORMATS = {
    _JPEG: JpegImagePlugin.JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"RIFF": WebPImagePlugin.WebPImageFile,
}
_INTERPOLATIONS = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear"}
_TURNED = (b"Exif\0\0", b"tiff:Orientation")  # the two places where an orientation may stand
_TURNS = "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"
_UPRIGHT = {orientation: Image.Transpose[name] for orientation, name in enumerate(_TURNS, 2)}


def _open(image: bytes | Image.Image) -> Image.Image:
    """Read no more than the header, and refuse what it says is too much."""
    content, magic = image, None
    if isinstance(content, bytes):
        magic = next((magic for magic in _FORMATS if content.startswith(magic)), None)
        if magic is None or (magic == b"RIFF" and content[8:12] != b"WEBP"):
            raise BadRecord("format", f"no JPEG, PNG or WebP: {len(content)} bytes that begin with {content[:12]!r}")
        try:
            image = _FORMATS[magic](io.BytesIO(content))
        except Image.DecompressionBombError as error:
            raise BadRecord("pixels", str(error)) from error
    excess = _excess(content if magic == _JPEG else b"", *image.size)
    if excess:
        raise BadRecord("pixels", excess)
    return image


def _excess(jpeg: bytes, width: int, height: int) -> str:
    """Say what is too much of a picture; of a JPEG, its scans too."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE_PX:
        return f"{width}x{height}; the most are {MAX_PIXELS} pixels and {MAX_SIDE_PX} a side"
    most = _MAX_SCANS * MAX_PIXELS // (width * height)
    # A scan has 10 bytes or more, so most files need no counting.
    too_many = len(jpeg) > 10 * most and jpeg.count(b"\xff\xda") > most
    return f"{width}x{height} in over {most} scans" if too_many else ""


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Say what makes it upright; EXIF that cannot be read says nothing, its pixels may be good all the same."""
    try:
        return _UPRIGHT.get(image.getexif().get(274))
    except Exception:
        return None


def open_image(image: bytes | Image.Image) -> Image.Image:
    """Decode a picture to an upright RGB image; of an animated one, its first frame.

    Args:
        image: A file's content (JPEG, PNG or WebP), or an image that Pillow opened.

    Raises:
        BadRecord: "format" if it is none of the three; "pixels" if it is too large; "image" if it does not decode.
    """
    try:
        image = _open(image)
        image.load()
        turn = _turn(image)  # after it: a PNG's EXIF may come last, and of a TIFF Pillow itself has turned the pixels
        if image.mode.startswith("I"):  # 16-bit gray: the high byte, as Pillow reads 16-bit RGB; its "L" would clip
            image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # the same colours, without Pillow's warning
        # Alpha is dropped, not laid over a colour: the encoders' own processors do so, and were trained on that.
        image = image if image.mode == "RGB" else image.convert("RGB")
        return image if turn is None else image.transpose(turn)
    except BadRecord:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise BadRecord("image", f"{type(error).__name__}: {error}") from error


def decode(image: bytes | Image.Image) -> Tensor:
    """Decode a picture to `(3, H, W)` uint8, RGB, upright; in memory channels last, as torch's resize is fastest.

    Args:
        image: As `open_image` takes it.

    Raises:
        BadRecord: As `open_image` does.
    """
    array = _decode_fast(image) if simplejpeg and isinstance(image, bytes) and image.startswith(_JPEG) else None
    array = np.array(open_image(image)) if array is None else array
    return torch.from_numpy(array).permute(2, 0, 1)


def _decode_fast(content: bytes) -> np.ndarray | None:
    """Decode a plain JPEG that is upright; None leaves it to Pillow, which also says what is wrong with it."""
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
        if colors not in ("YCbCr", "Gray") or _excess(content, width, height):
            return None
        # Opening by Pillow, which finds the orientation, takes a tenth of the decoding: only where one is named.
        if any(mark in content for mark in _TURNED) and _turn(_open(content)) is not None:
            return None
        return simplejpeg.decode_jpeg(content)
    except Exception:
        return None


def read_image(file: str | Path | BinaryIO, name: str) -> Image.Image:
    """Decode a picture to an upright RGB image.

    Args:
        file: Where its bytes are.
        name: What to call it in an error.

    Raises:
        ConfigError: If it cannot be decoded, or is no JPEG, PNG or WebP.
    """
    try:
        return open_image(Path(file).read_bytes() if isinstance(file, (str, Path)) else file.read())
    except (BadRecord, OSError) as error:
        why = getattr(error, "detail", error)
        raise ConfigError(
            f"{name}: not to be read as JPEG, PNG, WEBP ({why}): mend the file, or leave it out"
        ) from error


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
        known = known and int(processor.resample) in _INTERPOLATIONS and square == crop.get("width", square)
        if not known or height is None or height != width or not square or square > height:
            found = f"size {size}, crop {crop}, resample {processor.resample}, do_pad {pad}"
            raise ValueError(f"an image processor with {found}")
        return cls(
            size_px=square,
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
            fit="pad" if pad else "crop" if shorter else "squash",
            resize_px=height if height != square else None,
            interpolation=_INTERPOLATIONS[int(processor.resample)],
        )

    def to_dict(self) -> dict:
        return asdict(self)

    def __call__(self, image: bytes | Image.Image) -> Tensor:
        """Give `(3, size_px, size_px)` uint8.

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
