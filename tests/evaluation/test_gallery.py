import re
import weakref

import numpy as np
import pytest
from PIL import Image

from tests.support.chromium import needs_chromium, page_text
from tests.support.galleries import write_gallery_of
from visllama.evaluation.gallery import Shown, write_gallery
from visllama.evaluation.prompts import Prompt, Prompts, prompts_of_records


def records_of(number: int) -> list[dict]:
    image = Image.new("RGB", (48, 30))
    return [{"key": f"r<{i}>", "image": image, "captions": ["a & b", "<b>c</b>"]} for i in range(number)]


def test_a_page_that_opens_offline_and_escapes(tmp_path):
    captions = ["<script>alert(1)</script>"] + [f"caption {i}" for i in range(1, 50)]
    write_gallery_of(tmp_path / "g.html", "scenes <test>", records_of(50), captions, np.arange(50) / 50, count=5)
    page = (tmp_path / "g.html").read_text()
    assert page.count("<script>") == 1 and "&lt;script&gt;" in page and "<b>c</b>" not in page and "http:" not in page
    assert page.index(">1</span>") < page.index(">49</span>"), "the worst first"


def test_the_worst_the_best_and_some_at_random_are_shown_once_each(tmp_path):
    write_gallery_of(tmp_path / "g.html", "t", records_of(50), ["text"] * 50, np.arange(50) / 50, count=5)
    page = (tmp_path / "g.html").read_text()
    figures = re.findall(r'<figure class="([a-z ]+)" data-score="([0-9.]+)"', page)
    assert len({score for _, score in figures}) == len(figures) == page.count("<img")
    assert [kinds.split()[0] for kinds, _ in figures[:5]] == ["worst"] * 5
    assert sum("random" in kinds for kinds, _ in figures) == 5 == sum("best" in kinds for kinds, _ in figures)


def test_words_of_no_reference_and_wrong_answers_stand_out(tmp_path):
    image = Image.new("RGB", (8, 8))
    captioned = [{"key": "a", "image": image, "captions": ["A red square."]}]
    write_gallery_of(tmp_path / "g.html", "t", captioned, ["a blue square"], [0.5])
    page = (tmp_path / "g.html").read_text()
    assert '<span class="found">a</span> <span class="other">blue</span> <span class="found">square</span>' in page

    asked = [{"key": str(i), "image": image, "questions": [{"question": "?", "answers": ["red"]}]} for i in range(2)]
    write_gallery_of(tmp_path / "g.html", "t", asked, ["red", "blue"], [1.0, 0.0], "accuracy")
    page = (tmp_path / "g.html").read_text()
    assert re.findall(r'class="worst best random (\w+)"', page) == ["wrong", "right"]


def test_pictures_are_freed_one_by_one(tmp_path):
    read = []

    def read_pictures(_: int) -> list:
        assert all(picture() is None for picture in read)
        picture = Image.new("RGB", (8, 8))
        read.append(weakref.ref(picture))
        return [picture]

    prompts = Prompts([Prompt({"key": str(i), "captions": ["a"]}, i, 1) for i in range(3)], read_pictures)
    write_gallery(tmp_path / "g.html", "t", prompts, Shown(["a", "b", "c"], {"CIDEr": [0.1, 0.2, 0.3]}))
    assert len(read) == 3


def test_large_photos_become_small(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (800, 1200, 3), dtype=np.uint8))
    write_gallery_of(tmp_path / "g.html", "t", [{"key": "a", "image": noise, "captions": ["b"]}], [""], np.zeros(1))
    assert "(nothing)" in (tmp_path / "g.html").read_text() and (tmp_path / "g.html").stat().st_size < 200_000


def test_captions_that_name_what_is_not_there_are_a_kind_of_their_own(tmp_path):
    """All scores of a text are there to be sorted by; a caption that names nothing absent is not called hallucinated."""
    absent = [["dog", "dog"], [], ["cat"], []]
    scores = {"CIDEr": [0.4, 0.3, 0.2, 0.1], "CHAIRi": [1.0, 0.0, 0.5, 0.0]}
    shown = Shown(["a", "b", "c", "d"], scores, absent=absent)
    write_gallery(tmp_path / "g.html", "t", prompts_of_records(records_of(4)), shown, count=1)
    page = (tmp_path / "g.html").read_text()
    assert re.findall(r'<figure class="([a-z ]+)" data-score="([0-9.]+)"', page)[-1] == ("best hallucinated", "0.4")
    assert page.count(">not there: dog<") == 1 and page.count(' hallucinated" ') == 1
    assert "CIDEr 40, CHAIRi 100" in page and '<option value="+CHAIRi">best CHAIRi first' in page


def test_80_photos_make_less_than_10_mb(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    records = [{"key": str(i), "image": Image.fromarray(noise), "captions": ["b"] * 5} for i in range(80)]
    write_gallery_of(tmp_path / "g.html", "t", records, ["a"] * 80, np.arange(80) / 80)
    assert (tmp_path / "g.html").stat().st_size < 10_000_000


@pytest.mark.browser
@needs_chromium
def test_the_script_of_the_page_runs_and_no_other_one(tmp_path):
    """The page allows one script, by its hash, which counts what is shown."""
    write_gallery_of(tmp_path / "g.html", "t", records_of(7), ["text"] * 7, np.arange(7) / 7)
    assert "7 shown" in page_text(tmp_path / "g.html")
