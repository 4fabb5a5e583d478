"""From a picture's bytes to its pixels: RGB, upright, uint8; what is too large or damaged is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from torch import Tensor

from visllama.errors import BadRecord, ConfigError

try:
    import simplejpeg  # the extra `fast`
except ImportError:
    simplejpeg = None

SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
"""The endings of the files that `read_image` reads."""
MAX_PIXELS, MAX_SIDE_PX = 50_000_000, 65_535
"""Past either a picture is a bad record. Only a PNG can be longer; its other side, resized, would fill the memory."""
_MAX_SCANS = 100  # of MAX_PIXELS, about 1 s; a progressive JPEG has 10, a bomb thousands
# Pillow's classes and not `Image.open`, which tries them in turn and, of a bomb, only warns.
_JPEG = b"\xff\xd8\xff"
_FORMATS = {
    _JPEG: JpegImagePlugin.JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"RIFF": WebPImagePlugin.WebPImageFile,
}
_OF_FILES = {b"GIF8": GifImagePlugin.GifImageFile, b"BM": BmpImagePlugin.BmpImageFile}
"""Kinds of files that a user may show, and that no shard holds."""
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
    """Return what is too much of a picture; of a JPEG, its scans too."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE_PX:
        return f"{width}x{height}; the most are {MAX_PIXELS} pixels and {MAX_SIDE_PX} a side"
    most = _MAX_SCANS * MAX_PIXELS // (width * height)
    # A scan has 10 bytes or more, so most files need no counting.
    too_many = len(jpeg) > 10 * most and jpeg.count(b"\xff\xda") > most
    return f"{width}x{height} in over {most} scans" if too_many else ""


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return what makes a picture upright; None where nothing has to be done."""
    try:
        return _UPRIGHT.get(image.getexif().get(274))
    except Exception:  # EXIF that cannot be read: the pixels may be good all the same
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
        ConfigError: If it cannot be decoded, or is no JPEG, PNG, WebP, GIF or BMP.
    """
    try:
        content = Path(file).read_bytes() if isinstance(file, (str, Path)) else file.read()
        kind = next((kind for magic, kind in _OF_FILES.items() if content.startswith(magic)), None)
        return open_image(content if kind is None else kind(io.BytesIO(content)))
    except (
        BadRecord,
        OSError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:  # Pillow's of a header
        why = getattr(error, "detail", error)
        raise ConfigError(
            f"{name}: not to be read as JPEG, PNG, WEBP, GIF, BMP ({why}): mend the file, or leave it out"
        ) from error
