"""Find example pictures for a visitor to click: drawn scenes, or pictures of the galleries of a run."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from visllama.data.scenes.source import ScenesSource
from visllama.evaluation.gallery_cards import decode_picture, read_cards

NUM_EXAMPLES = 6
"""The largest number of example pictures."""


def find_examples(weights: Path, is_of_scenes: bool) -> list[Image.Image]:
    """Return at most six pictures of the kind that a model was trained on.

    Args:
        weights: The folder of the weights. Pictures are read from the galleries of their run,
            `evaluations/*/gallery.html` beside it; without galleries there are none.
        is_of_scenes: Whether the model was trained on drawn scenes. If so, six scenes are drawn, and no file is read.
    """
    if is_of_scenes:
        source = ScenesSource("test", NUM_EXAMPLES, 1)
        return [source[index]["image"] for index in range(NUM_EXAMPLES)]

    pictures: list[Image.Image] = []
    for page in sorted(weights.resolve().parent.glob("evaluations/*/gallery.html")):
        pictures += read_gallery(page, NUM_EXAMPLES - len(pictures))
    return pictures


def read_gallery(page: Path, count: int) -> list[Image.Image]:
    """Return the first pictures of a gallery, each once, in the order of the page.

    Pictures that cannot be read are passed over. The list is empty if the file is missing or is no gallery.

    Args:
        page: An evaluation's `gallery.html`, which somebody else may have written.
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
