"""A picture inside a page: its file as the address that an HTML page shows it by, so that the page needs no other."""

from __future__ import annotations

import base64
import io

from PIL import Image


def data_address(image: Image.Image, kind: str = "png") -> str:
    """Return a picture's file as a `data:` address.

    Args:
        image: The picture.
        kind: "png" keeps every pixel, "jpeg" is smaller for a photo.
    """
    buffer = io.BytesIO()
    image.save(buffer, kind)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind};base64,{encoded}"
