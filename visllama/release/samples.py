"""Choose sample pictures for a model card from the gallery of an evaluation: two of the best, and the worst.

A gallery is an HTML page that an evaluation writes, with pictures, the texts of the model, and their scores.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from visllama.evaluation.gallery_cards import GalleryCard, decode_picture, read_cards

_MAX_PICTURE_PX = 512
"""The largest width and height of a picture; larger ones are passed over."""


class Sample(NamedTuple):
    """A picture with the text that the model wrote about it.

    Attributes:
        picture: The content of a PNG file.
        key: The key of the record that the picture belongs to.
        question: The question that the model was asked; empty if it wrote a caption.
        text: The text that the model wrote.
        reference: The first of the texts of the record that the model's text was compared with.
        score: The score of the model's text. 1 is what tables show as 100; CIDEr can be above 1.
    """

    picture: bytes
    key: str
    question: str
    text: str
    reference: str
    score: float


def choose_samples(gallery: Path) -> list[Sample]:
    """Read a gallery, and return the two pictures with the best scores, then the one with the worst score.

    The two best ones have different texts, and better scores than the worst one. Pictures above 512 pixels and cards
    with several pictures are passed over.

    Args:
        gallery: An evaluation's `gallery.html`, which somebody else may have written.

    Returns:
        At most three samples, the worst one last; an empty list if the file is missing or has no usable pictures.
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
    """Yield a sample for each card that has a text of the model and exactly one picture, which can be read."""
    for card in cards:
        if len(card.addresses) != 1 or not card.texts["said"]:
            continue

        picture = _as_png(card.addresses[0])
        if picture is not None:
            texts = card.texts
            yield Sample(picture, card.key, texts["question"], texts["said"], texts["reference"], card.score)


def _as_png(address: str) -> bytes | None:
    """Return the content of a PNG file for a picture inside the page; None if it cannot be read, or is too large."""
    image = decode_picture(address)
    if image is None or max(image.size) > _MAX_PICTURE_PX:
        return None

    # Encoded anew, so that nothing but pixels of somebody else's file is published.
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
