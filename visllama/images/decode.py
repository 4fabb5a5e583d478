"""Decode image files (a picture is one image) to upright RGB pixels; what is too large or damaged is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from torch import Tensor

from visllama.errors import BadRecord, ConfigError

try:
    import simplejpeg  # the extra `fast`
except ImportError:
    simplejpeg = None

SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
"""The endings, without the dot, of the files that `read_image` can read."""
MAX_PIXELS = 50_000_000
"""The largest number of pixels of a picture; one of more is refused by a `BadRecord`."""
MAX_SIDE_PX = 65_535
"""The longest side of a picture in pixels; only a PNG can have a longer one, whose resized side would fill memory."""
# Scans of MAX_PIXELS, which take about 1 s. A progressive JPEG has 10, a decompression bomb has thousands.
_MAX_SCANS = 100
_EXIF_ORIENTATION = 274

# Pillow's classes and not `Image.open`, which tries them in turn and only warns of a decompression bomb.
_JPEG = b"\xff\xd8\xff"
_FORMATS = {
    _JPEG: JpegImagePlugin.JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"RIFF": WebPImagePlugin.WebPImageFile,
}
_FORMATS_OF_FILES = {b"GIF8": GifImagePlugin.GifImageFile, b"BM": BmpImagePlugin.BmpImageFile}
"""Formats of files that a user may show, and that no shard holds."""

# An orientation stands in one of two places: behind the header of EXIF, or in XMP.
_ORIENTATION_MARKS = (b"Exif\0\0", b"tiff:Orientation")
# The transpositions that make a picture upright, for the orientations from 2 on; 1 is upright already.
_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
_UPRIGHT = {orientation: Image.Transpose[name] for orientation, name in enumerate(_TURNS, 2)}


def _open(image: bytes | Image.Image) -> Image.Image:
    """Read no more than a picture's header; raise a `BadRecord` where its size, as the header has it, is too large."""
    if isinstance(image, bytes):
        picture = _open_bytes(image)
        jpeg = image if image.startswith(_JPEG) else b""
    else:
        picture = image
        jpeg = b""

    excess = _excess(jpeg, *picture.size)
    if excess:
        raise BadRecord("pixels", excess)
    return picture


def _open_bytes(content: bytes) -> Image.Image:
    magic = next((magic for magic in _FORMATS if content.startswith(magic)), None)
    # Other files than WebP, sounds for one, begin with RIFF too.
    if magic is None or (magic == b"RIFF" and content[8:12] != b"WEBP"):
        raise BadRecord("format", f"no JPEG, PNG or WebP: {len(content)} bytes that begin with {content[:12]!r}")

    try:
        return _FORMATS[magic](io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise BadRecord("pixels", str(error)) from error


def _excess(jpeg: bytes, width: int, height: int) -> str:
    """Return in words which limit a picture exceeds; an empty text where it exceeds none.

    Args:
        jpeg: The file's content, whose scans are counted; empty for a picture of another format.
        width: In pixels.
        height: In pixels.
    """
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE_PX:
        return f"{width}x{height}; the most are {MAX_PIXELS} pixels and {MAX_SIDE_PX} a side"

    max_scans = _MAX_SCANS * MAX_PIXELS // (width * height)
    # A scan has 10 bytes or more, so the length alone clears most files, and their scans need no counting.
    if len(jpeg) > 10 * max_scans and jpeg.count(b"\xff\xda") > max_scans:
        return f"{width}x{height} in over {max_scans} scans"
    return ""


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition that makes a picture upright; None where it is upright already."""
    try:
        return _UPRIGHT.get(image.getexif()[_EXIF_ORIENTATION])
    except Exception:  # no orientation, or EXIF that cannot be read: the pixels may be good all the same
        return None


def open_image(image: bytes | Image.Image) -> Image.Image:
    """Decode a picture, and return it as a Pillow image in RGB, turned upright as its EXIF orientation says.

    Of an animated picture, the first frame is returned. Transparency is dropped.

    Args:
        image: The content of a JPEG, PNG or WebP file, or an image that Pillow opened. A Pillow image that is in RGB
            and upright already is returned itself.

    Raises:
        BadRecord: With the reason "format" if the bytes are no JPEG, PNG or WebP file, "pixels" if the picture has more
            than `MAX_PIXELS` pixels, a side above `MAX_SIDE_PX`, or is a JPEG of too many scans (passes over the
            picture), and "image" if the picture cannot be decoded.
    """
    try:
        picture = _open(image)
        picture.load()
        # Only now: the EXIF of a PNG may come last, and a TIFF's pixels have been turned by Pillow itself.
        turn = _turn(picture)

        if picture.mode.startswith("I"):
            # 16-bit gray: the high byte is kept, as Pillow does with 16-bit RGB. Its own conversion to "L" would clip.
            high_bytes = np.asarray(picture).clip(0, 65535) >> 8
            picture = Image.fromarray(high_bytes.astype(np.uint8))
        elif picture.mode == "P" and "transparency" in picture.info:
            picture = picture.convert("RGBA")  # the same colours, without Pillow's warning

        # Alpha is dropped, not laid over a colour: the encoders' own processors do so, and were trained on that.
        if picture.mode != "RGB":
            picture = picture.convert("RGB")
        return picture if turn is None else picture.transpose(turn)
    except BadRecord:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise BadRecord("image", f"{type(error).__name__}: {error}") from error


def decode(image: bytes | Image.Image) -> UInt8[Tensor, "3 H W"]:
    """Decode a picture, and return its RGB pixels from 0 to 255, turned upright as its EXIF orientation says.

    In memory, the three channels of a pixel lie side by side, since torch resizes such tensors fastest. Plain JPEGs are
    decoded by the package simplejpeg if it is installed, and other pictures by Pillow.

    Args:
        image: The content of a JPEG, PNG or WebP file, or an image that Pillow opened.

    Raises:
        BadRecord: With the reason "format" if the bytes are no JPEG, PNG or WebP file, "pixels" if the picture has more
            than `MAX_PIXELS` pixels, a side above `MAX_SIDE_PX`, or is a JPEG of too many scans (passes over the
            picture), and "image" if the picture cannot be decoded.
    """
    array = None
    if simplejpeg is not None and isinstance(image, bytes) and image.startswith(_JPEG):
        array = _decode_fast(image)

    if array is None:
        array = np.array(open_image(image))
    return torch.from_numpy(array).permute(2, 0, 1)


def _decode_fast(content: bytes) -> np.ndarray | None:
    """Decode a plain upright JPEG by simplejpeg; return None for any other, which Pillow decodes or refuses."""
    assert simplejpeg is not None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
        if colors not in ("YCbCr", "Gray") or _excess(content, width, height):
            return None

        # Pillow, which reads the orientation, takes a tenth of the decoding: it is asked only where there may be one.
        names_orientation = any(mark in content for mark in _ORIENTATION_MARKS)
        if names_orientation and _turn(_open(content)) is not None:
            return None
        return simplejpeg.decode_jpeg(content)
    except Exception:
        return None


def read_image(file: str | Path | BinaryIO, name: str) -> Image.Image:
    """Read an image file that a user names, and return it as a Pillow image in RGB, upright by its EXIF orientation.

    Args:
        file: The path of the file, or the file itself, open for reading bytes; it is not closed.
        name: The name of the file in error messages.

    Raises:
        ConfigError: If the file cannot be read or decoded, is too large, or is no JPEG, PNG, WebP, GIF or BMP.
    """
    try:
        content = Path(file).read_bytes() if isinstance(file, (str, Path)) else file.read()

        for magic, image_class in _FORMATS_OF_FILES.items():
            if content.startswith(magic):
                return open_image(image_class(io.BytesIO(content)))
        return open_image(content)
    except (BadRecord, OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow raises a SyntaxError for a damaged header of these formats.
        reason = getattr(error, "detail", error)
        raise ConfigError(
            f"{name}: not to be read as JPEG, PNG, WEBP, GIF, BMP ({reason}): mend the file, or leave it out"
        ) from error
