import numpy as np
from PIL import Image

from visllama.data.scenes.source import ScenesSource
from visllama.evaluation.caption_task import blank_images, shuffled_images
from visllama.images.decode import open_image


def test_shuffled_images_are_all_anothers():
    records = [ScenesSource("test", 9, 1)[i] for i in range(9)]
    shuffled = shuffled_images(records)
    assert [r["key"] for r in shuffled] == [r["key"] for r in records]
    assert all(a["image"] is not b["image"] for a, b in zip(shuffled, records, strict=True))
    assert {id(r["image"]) for r in shuffled} == {id(r["image"]) for r in records}


def test_blank_images_show_nothing():
    blank = open_image(blank_images([ScenesSource("test", 1, 1)[0]])[0]["image"])
    pixels = np.asarray(blank)
    assert blank.size == (48, 48) and pixels.min() == pixels.max() == 128


def test_blank_images_of_a_whole_test_split_are_not_held_decoded():
    """3 photos of 12 million pixels are 108 MB decoded; blank they share one file."""
    records = [{"key": str(i), "image": Image.new("RGB", (4000, 3000)), "captions": ["a"]} for i in range(3)]
    files = {id(record["image"]): record["image"] for record in blank_images(records)}
    assert sum(map(len, files.values())) < 200_000
