"""The cards of an evaluation's gallery, read as data: nothing of the page is run, fetched or opened."""

from __future__ import annotations

import base64
import math
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from visllama.errors import BadRecord
from visllama.files import read_regular
from visllama.images.decode import open_image

_MOST_BYTES = 2**27
_PICTURES = ("data:image/png", "data:image/jpeg")
_PLACES = {"figcaption": "question", "b": "said", "li": "reference"}
"""Where a card's texts stand."""


class GalleryCard:
    """A card: pictures, and what was said of them.

    Attributes:
        id: The id by which its text is written and scored.
        key: The record's.
        score: A share of 1, or above it.
        addresses: The addresses of its pictures, as they stand in the page.
        texts: By "question" (empty where a picture was captioned), "said" and "reference", of which it is the first.
        references: All that are shown.
    """

    def __init__(self, key: str, score: float, own_id: str) -> None:
        self.id = own_id
        self.key = key
        self.score = score
        self.addresses: list[str] = []
        self.texts: dict[str, str] = {"question": "", "said": "", "reference": ""}
        self.references: list[str] = []


def read_cards(page: Path) -> list[GalleryCard]:
    """Return the cards of a gallery that have a score; none where it is no gallery.

    Args:
        page: An evaluation's `gallery.html`, which somebody else may have written.
    """
    try:
        parser = _Gallery()
        parser.feed(read_regular(page, _MOST_BYTES))
    except (OSError, ValueError):
        return []
    return parser.cards


def decode_picture(address: str) -> Image.Image | None:
    """Return a picture that stands inside the page; None where it is elsewhere, or is none."""
    kind, _, data = address.partition(";base64,")
    if kind not in _PICTURES:
        return None
    try:
        return open_image(base64.b64decode(data, validate=True))
    except (ValueError, OSError, BadRecord):
        return None


class _Gallery(HTMLParser):
    """Collect the cards of a gallery."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.cards: list[GalleryCard] = []
        self._card: GalleryCard | None = None
        self._place = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "figure":
            key = found.get("data-key", "")
            self._card = GalleryCard(key, _number(found.get("data-score", "")), found.get("data-id", key))
        elif self._card is None:
            return
        elif tag == "img":
            self._card.addresses.append(found.get("src", ""))
        elif tag == "li":
            self._card.references.append("")
            self._place = "reference"
        elif tag in _PLACES:
            self._place = _PLACES[tag]
        elif tag == "small":
            self._place = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "figure" and self._card is not None:
            self._card.texts = {place: text.strip() for place, text in self._card.texts.items()}
            if math.isfinite(self._card.score):
                self.cards.append(self._card)
            self._card, self._place = None, ""
        elif tag in _PLACES:
            self._place = ""

    def handle_data(self, data: str) -> None:
        if self._card is None or not self._place:
            return
        if self._place == "reference":
            self._card.references[-1] += data
            if len(self._card.references) > 1:
                return  # the texts hold the first one alone
        self._card.texts[self._place] += data


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
