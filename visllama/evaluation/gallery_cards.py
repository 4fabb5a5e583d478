"""Read the cards of an evaluation's gallery as data: nothing of the page is run, fetched or opened."""

from __future__ import annotations

import base64
import math
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from visllama.files import read_regular
from visllama.images.decode import open_image

_MOST_BYTES = 2**27
_PICTURES = ("data:image/png", "data:image/jpeg")
_PLACES = {"figcaption": "question", "b": "said", "li": "reference"}
"""The element in which each text of a card stands."""


class GalleryCard:
    """A card: pictures, and the text that was generated about them.

    Args:
        key: The key of the record.
        score: The score of the text.
        card_id: The id under which the text is written and scored.

    Attributes:
        id: The id under which the text is written and scored.
        key: The key of the record.
        score: The score of the text, where 1 is printed as 100; CIDEr can be above 1.
        addresses: The addresses of the pictures, as they stand in the page.
        texts: The question under "question" (empty where a picture was captioned), the generated text under "said" and
            the first reference under "reference".
        references: All references that the card shows.
    """

    def __init__(self, key: str, score: float, card_id: str) -> None:
        self.id = card_id
        self.key = key
        self.score = score
        self.addresses: list[str] = []
        self.texts: dict[str, str] = {"question": "", "said": "", "reference": ""}
        self.references: list[str] = []


def read_cards(page: Path) -> list[GalleryCard]:
    """Return the cards of a gallery that have a score; an empty list if the page is no gallery.

    Args:
        page: An evaluation's `gallery.html`, which somebody else may have written.
    """
    parser = _Gallery()
    try:
        parser.feed(read_regular(page, _MOST_BYTES))
    except (OSError, ValueError):
        return []
    return parser.cards


def decode_picture(address: str) -> Image.Image | None:
    """Decode a picture that the page holds as a `data:` URI in base64; None for any other address, or broken data.

    Args:
        address: The `src` of the picture in the page.
    """
    kind, _, data = address.partition(";base64,")
    if kind not in _PICTURES:
        return None

    # A BadRecord is a ValueError.
    try:
        return open_image(base64.b64decode(data, validate=True))
    except (ValueError, OSError):
        return None


class _Gallery(HTMLParser):
    """Collect the cards of a gallery."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.cards: list[GalleryCard] = []
        self._card: GalleryCard | None = None
        self._place = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a card, or a text of it."""
        attributes = {name: value or "" for name, value in attrs}
        if tag == "figure":
            key = attributes.get("data-key", "")
            score = _number(attributes.get("data-score", ""))
            # Galleries of earlier versions have no ids: their texts were written under the keys.
            self._card = GalleryCard(key, score, attributes.get("data-id", key))
        elif self._card is None:
            return
        elif tag == "img":
            self._card.addresses.append(attributes.get("src", ""))
        elif tag == "li":
            self._card.references.append("")
            self._place = "reference"
        elif tag in _PLACES:
            self._place = _PLACES[tag]
        elif tag == "small":
            self._place = ""

    def handle_endtag(self, tag: str) -> None:
        """End a card, or a text of it."""
        if tag == "figure" and self._card is not None:
            self._card.texts = {place: text.strip() for place, text in self._card.texts.items()}
            if math.isfinite(self._card.score):
                self.cards.append(self._card)
            self._card = None
            self._place = ""
        elif tag in _PLACES:
            self._place = ""

    def handle_data(self, data: str) -> None:
        """Add a piece of text to the card; a text may come in several pieces."""
        if self._card is None or not self._place:
            return

        if self._place == "reference":
            self._card.references[-1] += data
            # The texts hold the first reference alone.
            if len(self._card.references) > 1:
                return
        self._card.texts[self._place] += data


def _number(text: str) -> float:
    """Return the number of a text; NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
