"""Pictures that are ready to be clicked: of the embedded world, or of the run's own galleries."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from visllama.data.scenes.source import ScenesSource
from visllama.errors import BadRecord
from visllama.files import read_regular
from visllama.images.decode import open_image

NUM_EXAMPLES = 6
_MOST_BYTES = 64 * 2**20
"""A gallery holds some hundred thumbnails of a few kilobytes."""
_PREFIXES = ("data:image/png;base64,", "data:image/jpeg;base64,")


def find_examples(weights: Path, is_of_scenes: bool) -> list[Image.Image]:
    """Return some pictures that a model can say something about; none where there are none.

    Args:
        weights: The model's folder. The galleries of its run, if any, lie beside it.
        is_of_scenes: Whether the model has learned on the embedded world.
    """
    if is_of_scenes:
        source = ScenesSource("test", NUM_EXAMPLES, 1)
        return [source[index]["image"] for index in range(NUM_EXAMPLES)]
    pictures: list[Image.Image] = []
    for page in sorted(weights.resolve().parent.glob("evaluations/*/gallery.html")):
        pictures += read_gallery(page, NUM_EXAMPLES - len(pictures))
    return pictures


def read_gallery(page: Path, count: int) -> list[Image.Image]:
    """Return at most so many different pictures of a gallery; whatever is odd in it is passed over.

    Args:
        page: The file, which somebody else may have written: it is read as data alone.
        count: The largest number of pictures.
    """
    try:
        content = read_regular(page, _MOST_BYTES)
    except (OSError, ValueError):
        return []
    parser = _Cards()
    parser.feed(content)
    pictures: list[Image.Image] = []
    for address in dict.fromkeys(parser.addresses):
        if len(pictures) >= count:
            break
        pictures += _decoded(address)
    return pictures


def _decoded(address: str) -> Iterator[Image.Image]:
    prefix = next((prefix for prefix in _PREFIXES if address.startswith(prefix)), None)
    if prefix is None:
        return
    try:
        yield open_image(base64.b64decode(address.removeprefix(prefix), validate=True))
    except (BadRecord, binascii.Error, ValueError):
        return


class _Cards(HTMLParser):
    """Collect the addresses of the images that stand in the cards of a gallery."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self._is_in_card = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "figure":
            self._is_in_card = "data-score" in attributes and "data-key" in attributes
        elif tag == "img" and self._is_in_card:
            self.addresses.append(attributes.get("src") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "figure":
            self._is_in_card = False
