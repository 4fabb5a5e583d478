"""Example pictures for a visitor to click: scenes of the embedded world, or pictures of the run's galleries."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from visllama.data.scenes.source import ScenesSource
from visllama.evaluation.gallery_cards import decode_picture, read_cards

NUM_EXAMPLES = 6


def find_examples(weights: Path, is_of_scenes: bool) -> list[Image.Image]:
    """Return pictures of the kind that a model was trained on; none where its run has no galleries.

    Args:
        weights: The folder of the weights. The galleries of their run, if any, lie beside it.
        is_of_scenes: Whether the model was trained on the embedded world.
    """
    if is_of_scenes:
        source = ScenesSource("test", NUM_EXAMPLES, 1)
        return [source[index]["image"] for index in range(NUM_EXAMPLES)]

    pictures: list[Image.Image] = []
    for page in sorted(weights.resolve().parent.glob("evaluations/*/gallery.html")):
        pictures += read_gallery(page, NUM_EXAMPLES - len(pictures))
    return pictures


def read_gallery(page: Path, count: int) -> list[Image.Image]:
    """Return different pictures of a gallery; those that cannot be read are passed over.

    Args:
        page: The gallery's file, which somebody else may have written.
        count: The largest number of pictures.
    """
    addresses: list[str] = []
    for card in read_cards(page):
        addresses += card.addresses

    # A picture that several cards show is taken once.
    pictures: list[Image.Image] = []
    for address in dict.fromkeys(addresses):
        if len(pictures) >= count:
            break
        picture = decode_picture(address)
        if picture is not None:
            pictures.append(picture)
    return pictures
