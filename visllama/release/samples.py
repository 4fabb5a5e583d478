"""Sample pictures for a card, out of the gallery of an evaluation: two of the best, and the worst."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from visllama.evaluation.gallery_cards import GalleryCard, decode_picture, read_cards

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
    ranked = sorted(read_cards(gallery), key=lambda card: -card.score)
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


def _samples(cards: Iterable[GalleryCard]) -> Iterator[Sample]:
    """Yield the cards of one picture, as far as it can be read."""
    for card in cards:
        picture = _as_png(card.addresses[0]) if len(card.addresses) == 1 else None
        if picture is not None and card.texts["said"]:
            yield Sample(picture, card.key, **card.texts, score=card.score)


def _as_png(address: str) -> bytes | None:
    """Return a picture that stands inside the page as a PNG file of its pixels alone; None where it is none."""
    image = decode_picture(address)
    if image is None or max(image.size) > _MOST_PICTURE_PX:
        return None
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
