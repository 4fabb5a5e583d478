"""Sample pictures for a card, taken from the gallery of an evaluation: two of the best, and the worst."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from visllama.evaluation.gallery_cards import GalleryCard, decode_picture, read_cards

_MAX_PICTURE_PX = 512


class Sample(NamedTuple):
    """A picture with what the model wrote about it.

    Attributes:
        picture: The picture as a PNG file.
        key: The key of its record.
        question: The question that the model was asked; empty where the picture was captioned.
        text: The text that the model wrote.
        reference: The text that a person wrote.
        score: The score of the text, as the gallery has it: 1 is good, and CIDEr can exceed it.
    """

    picture: bytes
    key: str
    question: str
    text: str
    reference: str
    score: float


def choose_samples(gallery: Path) -> list[Sample]:
    """Return the two pictures with the best scores and different texts, and the one with the worst score.

    Args:
        gallery: An evaluation's `gallery.html`, which somebody else may have written.

    Returns:
        The three samples, the worst one last; fewer where the gallery has fewer, none where it is no gallery.
    """
    ranked = sorted(read_cards(gallery), key=lambda card: -card.score)
    worst = next(_read_samples(reversed(ranked)), None)
    if worst is None:
        return []

    best: list[Sample] = []
    for sample in _read_samples(ranked):
        # Two of the same text would show a reader one thing twice.
        is_repeated = sample.text in [other.text for other in best]
        is_better = sample.score > worst.score and sample.key != worst.key
        if is_better and not is_repeated:
            best.append(sample)
        if len(best) == 2:
            break
    return [*best, worst]


def _read_samples(cards: Iterable[GalleryCard]) -> Iterator[Sample]:
    """Yield the cards that have a text and exactly one picture, as far as that can be read."""
    for card in cards:
        if len(card.addresses) != 1 or not card.texts["said"]:
            continue

        picture = _as_png(card.addresses[0])
        if picture is not None:
            texts = card.texts
            yield Sample(picture, card.key, texts["question"], texts["said"], texts["reference"], card.score)


def _as_png(address: str) -> bytes | None:
    """Return a picture of the page as a PNG file of its pixels; None where it cannot be read, or is too large."""
    image = decode_picture(address)
    if image is None or max(image.size) > _MAX_PICTURE_PX:
        return None

    # Encoded anew, so that nothing but pixels of somebody else's file is published.
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
