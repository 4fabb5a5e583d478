"""Read pictures that a client sends, by visllama's own decoder: it refuses one that is too large by its header."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from visllama.errors import BadRecord, ConfigError
from visllama.files import open_regular
from visllama.images.decode import read_image


def read_picture(content: bytes, name: str) -> Image.Image:
    """Decode the content of a picture's file to an upright RGB image.

    Args:
        content: The content of a JPEG, PNG, WebP, GIF or BMP file.
        name: The name of the file in error messages.

    Raises:
        ConfigError: If the content is no such picture, is damaged, or has too many pixels; the message is for the
            client.
    """
    try:
        return read_image(io.BytesIO(content), name)
    except ConfigError as error:
        # The cause says whether the picture is too large, which a visitor can mend.
        cause = error.__cause__
        if isinstance(cause, BadRecord) and cause.reason == "pixels":
            raise ConfigError(f"{name} is too large: {cause.detail}") from error
        raise ConfigError(f"{name} is no picture that can be read: JPEG, PNG, WebP, GIF or BMP") from error


def read_upload(file: object, folder: Path, max_bytes: int) -> tuple[bytes, str]:
    """Read an uploaded file, and return its content and the name that the visitor's file had.

    If the page gives no such name, the name of the upload is returned.

    Args:
        file: The page's description of the file, a dict with `path` and `orig_name`, or its path alone. It comes from
            the client, and may be anything.
        folder: The folder of uploads; no file outside of it is read.
        max_bytes: The largest size of a file, in bytes.

    Raises:
        ConfigError: If the file is not inside the folder, is no longer there, or is too large.
    """
    # A path outside of the folder gets the same answer: a client learns nothing about other files.
    is_gone = ConfigError("the picture is no longer there: choose it again")
    if isinstance(file, dict):
        path = file.get("path")
        original_name = file.get("orig_name")
    else:
        path = file
        original_name = None

    if not isinstance(path, str) or not path or "\0" in path:
        raise is_gone

    # Resolved first: `..` or a link could lead out of the folder.
    resolved = Path(path).resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise is_gone

    try:
        with open_regular(resolved) as opened:
            content = opened.read(max_bytes + 1)
    except (OSError, ValueError):
        raise is_gone from None

    if len(content) > max_bytes:
        raise ConfigError(f"the file is larger than {max_bytes / 2**20:g} MB")
    return content, original_name if isinstance(original_name, str) else resolved.name
