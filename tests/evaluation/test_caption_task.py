import numpy as np

from visllama.data.scenes.source import ScenesSource
from visllama.evaluation.caption_task import blank_images, shuffled_images


def test_shuffled_images_are_all_anothers():
    records = [ScenesSource("test", 9, 1)[i] for i in range(9)]
    shuffled = shuffled_images(records)
    assert [r["key"] for r in shuffled] == [r["key"] for r in records]
    assert all(a["image"] is not b["image"] for a, b in zip(shuffled, records, strict=True))
    assert {id(r["image"]) for r in shuffled} == {id(r["image"]) for r in records}


def test_blank_images_show_nothing():
    blank = blank_images([ScenesSource("test", 1, 1)[0]])[0]
    assert blank["image"].size == (48, 48) and np.asarray(blank["image"]).std() == 0
