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
    """One card of a gallery page: the pictures of a record, the text that a model generated, and the references.

    Args:
        key: The key of the record.
        score: The score of the generated text.
        card_id: The id of the text in the files of predictions and scores.

    Attributes:
        id: The id of the text in the files of predictions and scores: that of its image, or of its question.
        key: The key of the record.
        score: The score of the generated text, where 1 is printed as 100; CIDEr can be above 1.
        addresses: The `src` of each picture, as it stands in the page; `decode_picture` decodes it.
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
    """Read a gallery page, and return its cards in the order of the page; cards without a finite score are left out.

    The list is empty if the page cannot be read, is larger than 128 MiB, or is no gallery.

    Args:
        page: The `gallery.html` of an evaluation. Nothing in it is run, since somebody else may have written it.
    """
    parser = _Gallery()
    try:
        parser.feed(read_regular(page, _MOST_BYTES))
    except (OSError, ValueError):
        return []
    return parser.cards


def decode_picture(address: str) -> Image.Image | None:
    """Decode a PNG or JPEG picture from a `data:` URI in base64, and return it in RGB.

    None is returned for any other address, and for data that cannot be decoded. No file and no web address is opened.

    Args:
        address: The `src` of a picture, as `GalleryCard.addresses` holds it.
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
