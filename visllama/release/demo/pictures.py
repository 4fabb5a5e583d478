"""Pictures that a client sends: read by our own decoder alone, which refuses what is too large from its header."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from visllama.errors import BadRecord, ConfigError
from visllama.files import open_regular
from visllama.images.decode import read_image


def read_picture(content: bytes, name: str) -> Image.Image:
    """Decode a picture's file to an upright RGB image.

    Args:
        content: The file.
        name: What the client calls it.

    Raises:
        ConfigError: If it is no picture, damaged or too large, in words for the client.
    """
    try:
        return read_image(io.BytesIO(content), name)
    except ConfigError as error:
        cause = error.__cause__
        if isinstance(cause, BadRecord) and cause.reason == "pixels":
            raise ConfigError(f"{name} is too large: {cause.detail}") from error
        raise ConfigError(f"{name} is no picture that can be read: JPEG, PNG, WebP, GIF or BMP") from error


def read_upload(file: object, folder: Path, max_bytes: int) -> tuple[bytes, str]:
    """Return the content of an uploaded file, and the name that it had.

    Args:
        file: What the page says of the file: its path, and the name that it had.
        folder: Where uploads lie; nothing outside of it is read.
        max_bytes: The largest size.

    Raises:
        ConfigError: If it is no upload, is no longer there, or is too large.
    """
    gone = ConfigError("the picture is no longer there: choose it again")
    path = file.get("path") if isinstance(file, dict) else file
    if not isinstance(path, str) or not path or "\0" in path:
        raise gone
    resolved = Path(path).resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise gone
    try:
        with open_regular(resolved) as opened:
            content = opened.read(max_bytes + 1)
    except (OSError, ValueError):
        raise gone from None
    if len(content) > max_bytes:
        raise ConfigError(f"the file is larger than {max_bytes / 2**20:g} MB")
    name = file.get("orig_name") if isinstance(file, dict) else None
    return content, name if isinstance(name, str) else resolved.name
