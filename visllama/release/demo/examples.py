"""Pictures that are ready to be clicked: of the embedded world, or of the run's own galleries."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from visllama.data.scenes.source import ScenesSource
from visllama.evaluation.gallery_cards import decode_picture, read_cards

NUM_EXAMPLES = 6


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
        page: The file, which somebody else may have written.
        count: The largest number of pictures.
    """
    addresses = [address for card in read_cards(page) for address in card.addresses]
    pictures: list[Image.Image] = []
    for address in dict.fromkeys(addresses):
        if len(pictures) >= count:
            break
        picture = decode_picture(address)
        if picture is not None:
            pictures.append(picture)
    return pictures
