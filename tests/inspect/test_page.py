"""The page holds each token and the very pixels, asks for nothing, and runs nothing that data says."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from webdataset import TarWriter

from tests.support.chromium import needs_chromium, screenshot
from tests.support.inspections import SMALL, of_tar, red_picture
from tests.support.verbs import inspect


@pytest.fixture
def tar(tmp_path):
    """Conversations with two images and two turns, and one record whose image does not decode."""
    said = [
        {"from": "human", "value": "<image>\n<image>\n<script>alert(1)</script> same?"},
        {"from": "gpt", "value": "no & yes"},
        {"from": "human", "value": "sure?"},
        {"from": "gpt", "value": "yes"},
    ]
    with TarWriter(str(tmp_path / "a.tar")) as written:
        for i in range(3):
            record = {"0.png": red_picture(i), "1.png": red_picture(200), "json": {"conversations": said}}
            written.write({"__key__": f"talk<b>{i}", **record})
        written.write({"__key__": "broken", "png": red_picture(9)[:-40], "json": {"captions": ["never read"]}})
    return str(tmp_path / "a.tar")


class Page(HTMLParser):
    """The tags of a page, and the text of each class of span."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.spans, self.within = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.within = dict(attrs) if tag == "span" and "title" in dict(attrs) else None

    def handle_data(self, data):
        if self.within:
            self.spans.append((self.within["class"], self.within["title"], data))
            self.within = None


def test_conversations_with_images_and_a_record_that_is_masked(compose_config, tmp_path, tar, capsys):
    seen = inspect(compose_config("inspect", *of_tar(tar), "stage.template=vicuna", "num_samples=1"))
    count = seen.counts[0]
    assert (count.samples, count.with_images, dict(count.masked)) == (4, 3, {"image": 1})
    talk = next(one for one in seen.shown if not one.sample.fault)
    segments = [token.segment for token in talk.tokens]
    assert [segments.count(name) for name in ("boi", "image", "eoi", "end")] == [2, 2, 2, 2]
    assert len(talk.sample.pixel_values) == 2
    page = Page((tmp_path / "inspect.html").read_text())
    assert page.tags.count("img") == 6 and "script" not in page.tags and "b" not in page.tags
    assert len([span for span in page.spans if span[0] == "image"]) == 6
    learned = [(f"id {t.id}, {t.segment}, label {t.id}", t.name) for t in talk.tokens if t.label is not None]
    of_one = [span[1:] for span in page.spans if "label" in span[1]]
    assert of_one == learned * 3, "three records say the same"
    assert "masked: image: " in capsys.readouterr().out and "masked: image: " in (tmp_path / "inspect.html").read_text()


def test_the_page_is_whole_and_asks_for_nothing(compose_config, tmp_path, tar):
    inspect(compose_config("inspect", *of_tar(tar), f"stage.prompt='{'a red circle ' * 90}'"))
    text = (tmp_path / "inspect.html").read_text()
    assert "<script" not in text and "talk&lt;b&gt;" in text and not re.search(r"(src|href)=.?(?!data:)http", text)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == 6 and "<svg" in text and "default-src 'none'" in text


def test_pictures_are_the_pixels_that_the_model_sees(compose_config, tmp_path):
    seen = inspect(compose_config("inspect", *SMALL, "samples=2"))
    pictures = re.findall(r'base64,([^"]+)"', (tmp_path / "inspect.html").read_text())
    for picture, one in zip(pictures, seen.shown, strict=True):
        opened = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
        assert (opened == one.sample.pixel_values[0].permute(1, 2, 0).numpy()).all()


@pytest.mark.browser
@needs_chromium
def test_a_browser_draws_the_page(compose_config, tmp_path):
    inspect(compose_config("inspect", *SMALL, "samples=2", "stage.prompt=a picture of"))
    screenshot(tmp_path / "inspect.html", tmp_path / "shot.png")
    colors = {color for _, color in Image.open(tmp_path / "shot.png").convert("RGB").getcolors(2**24)}
    assert {(0xD2, 0xF0, 0xD2), (0xD5, 0xE4, 0xFB), (0xEE, 0xEE, 0xEE), (0x5B, 0x8D, 0xD6)} <= colors
