"""Write an image into an HTML page itself, as a `data:` address, so that the page needs no file beside it."""

from __future__ import annotations

import base64
import io

from PIL import Image


def data_address(image: Image.Image, kind: str = "png") -> str:
    """Return an image as a `data:` address, which holds the whole encoded file in base64, for `<img src=...>`.

    Args:
        image: The image; for "jpeg" in a mode that JPEG can store, as RGB.
        kind: The file format: "png" keeps every pixel, "jpeg" is smaller for a photo.

    Raises:
        OSError: If the format cannot store the image's mode.
        KeyError: If Pillow knows no format of this name.
    """
    buffer = io.BytesIO()
    image.save(buffer, kind)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind};base64,{encoded}"
