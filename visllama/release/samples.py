"""Sample pictures for a card, out of the gallery of an evaluation: two of the best, and the worst."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from visllama.data.record import BadRecord
from visllama.files import read_regular
from visllama.images.decode import open_image

_MOST_GALLERY_BYTES = 2**27
_MOST_PICTURE_PX = 512


class Sample(NamedTuple):
    """A picture with what was said of it.

    Attributes:
        picture: As a PNG file.
        key: The record's.
        question: What was asked; empty where the picture was captioned.
        said: What the model wrote.
        reference: What a person wrote.
        score: A share of 1, or above it, as the gallery has it.
    """

    picture: bytes
    key: str
    question: str
    said: str
    reference: str
    score: float


def choose_samples(gallery: Path) -> list[Sample]:
    """Return two of the best pictures, of which different things were said, and the worst one, by their scores.

    Args:
        gallery: An evaluation's `gallery.html`, which somebody else may have written.

    Returns:
        The three, the worst one last; fewer where the gallery has not so many, none where it is no gallery.
    """
    try:
        parser = _Gallery()
        parser.feed(read_regular(gallery, _MOST_GALLERY_BYTES))
    except (OSError, ValueError):
        return []
    ranked = sorted(parser.figures, key=lambda figure: -figure.score)
    worst = next(_samples(reversed(ranked)), None)
    if worst is None:
        return []
    best: list[Sample] = []
    for sample in _samples(ranked):
        is_new = sample.said not in [other.said for other in best]
        if sample.score > worst.score and sample.key != worst.key and is_new:
            best.append(sample)
        if len(best) == 2:
            break
    return [*best, worst]


class _Figure:
    """A card of the gallery, as it is read."""

    def __init__(self, key: str, score: float) -> None:
        self.key, self.score = key, score
        self.source = ""
        self.texts: dict[str, str] = {"question": "", "said": "", "reference": ""}
        self.num_pictures = 0


_PLACES = {"figcaption": "question", "b": "said", "li": "reference"}
"""Where a card's texts stand."""


class _Gallery(HTMLParser):
    """Read the cards of a gallery: nothing of the page is run, fetched or opened.

    Attributes:
        figures: The cards that have a score.
    """

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.figures: list[_Figure] = []
        self._figure: _Figure | None = None
        self._place = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "figure":
            self._figure = _Figure(found.get("data-key", ""), _number(found.get("data-score", "")))
        elif self._figure is None:
            return
        elif tag == "img":
            self._figure.source = self._figure.source or found.get("src", "")
            self._figure.num_pictures += 1
        elif tag == "li":
            self._place = "" if self._figure.texts["reference"] else "reference"  # the first one
        elif tag in _PLACES:
            self._place = _PLACES[tag]
        elif tag == "small":
            self._place = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "figure" and self._figure is not None:
            if math.isfinite(self._figure.score):
                self.figures.append(self._figure)
            self._figure, self._place = None, ""
        elif tag in _PLACES:
            self._place = ""

    def handle_data(self, data: str) -> None:
        if self._figure is not None and self._place:
            self._figure.texts[self._place] += data


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _samples(figures: Iterable[_Figure]) -> Iterator[Sample]:
    """Yield the figures of one picture, as far as it can be read."""
    for figure in figures:
        picture = _picture(figure.source) if figure.num_pictures == 1 else None
        if picture is not None and figure.texts["said"]:
            yield Sample(picture, figure.key, **figure.texts, score=figure.score)


def _picture(source: str) -> bytes | None:
    """Return a picture that stands inside the page as a PNG file of its pixels alone; None where it is none."""
    kind, _, data = source.partition(";base64,")
    if kind not in ("data:image/png", "data:image/jpeg"):
        return None
    try:
        image = open_image(base64.b64decode(data, validate=True))
    except (ValueError, OSError, BadRecord):
        return None
    if max(image.size) > _MOST_PICTURE_PX:
        return None
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
