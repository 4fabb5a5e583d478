"""A picture inside a page."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from visllama.images.inline import data_address


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_the_address_holds_the_file(kind, records):
    image = records[0]["image"]
    head, _, data = data_address(image, kind).partition(",")
    assert head == f"data:image/{kind};base64"
    found = Image.open(io.BytesIO(base64.b64decode(data)))
    assert found.format == kind.upper() and found.size == image.size
    assert np.array_equal(np.asarray(found), np.asarray(image)) == (kind == "png"), "PNG alone keeps every pixel"
