import re

import numpy as np
import pytest
from PIL import Image

from tests.support.chromium import needs_chromium, page_text
from visllama.evaluation.gallery import write_gallery


def records_of(number: int) -> list[dict]:
    image = Image.new("RGB", (48, 30))
    return [{"key": f"r<{i}>", "image": image, "captions": ["a & b", "<b>c</b>"]} for i in range(number)]


def test_a_page_that_opens_offline_and_escapes(tmp_path):
    captions = ["<script>alert(1)</script>"] + [f"caption {i}" for i in range(1, 50)]
    write_gallery(tmp_path / "g.html", "scenes <test>", records_of(50), captions, np.arange(50) / 50, count=5)
    page = (tmp_path / "g.html").read_text()
    assert page.count("<script") == 1 and "&lt;script&gt;" in page and "<b>c</b>" not in page and "http:" not in page
    assert page.index(">1</span>") < page.index(">49</span>"), "the worst first"


def test_the_worst_the_best_and_some_at_random_are_shown_once_each(tmp_path):
    write_gallery(tmp_path / "g.html", "t", records_of(50), ["text"] * 50, np.arange(50) / 50, count=5)
    page = (tmp_path / "g.html").read_text()
    figures = re.findall(r'<figure class="([a-z ]+)" data-score="([0-9.]+)"', page)
    assert len({score for _, score in figures}) == len(figures) == page.count("<img")
    assert [kinds.split()[0] for kinds, _ in figures[:5]] == ["worst"] * 5
    assert sum("random" in kinds for kinds, _ in figures) == 5 == sum("best" in kinds for kinds, _ in figures)


def test_words_of_no_reference_and_wrong_answers_stand_out(tmp_path):
    image = Image.new("RGB", (8, 8))
    captioned = [{"key": "a", "image": image, "captions": ["A red square."]}]
    write_gallery(tmp_path / "g.html", "t", captioned, ["a blue square"], [0.5])
    page = (tmp_path / "g.html").read_text()
    assert '<span class="found">a</span> <span class="other">blue</span> <span class="found">square</span>' in page

    asked = [{"key": str(i), "image": image, "questions": [{"question": "?", "answers": ["red"]}]} for i in range(2)]
    write_gallery(tmp_path / "g.html", "t", asked, ["red", "blue"], [1.0, 0.0], "accuracy")
    page = (tmp_path / "g.html").read_text()
    assert re.findall(r'class="worst best random (\w+)"', page) == ["wrong", "right"]


def test_large_photos_become_small(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (800, 1200, 3), dtype=np.uint8))
    write_gallery(tmp_path / "g.html", "t", [{"key": "a", "image": noise, "captions": ["b"]}], [""], np.zeros(1))
    assert "(nothing)" in (tmp_path / "g.html").read_text() and (tmp_path / "g.html").stat().st_size < 200_000


@pytest.mark.browser
@needs_chromium
def test_the_script_of_the_page_runs_and_no_other_one(tmp_path):
    """The page allows one script, by its hash, which counts what is shown."""
    write_gallery(tmp_path / "g.html", "t", records_of(7), ["text"] * 7, np.arange(7) / 7)
    assert "7 shown" in page_text(tmp_path / "g.html")
