"""The page holds the figures, asks for nothing, and runs nothing that data says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.chromium import needs_chromium
from tests.support.found_study import study
from visllama.inspect.connector.page import write_page

PIXELS = torch.full((3, 24, 24), 200, dtype=torch.uint8)


def page(folder: Path, found=None, pixels: torch.Tensor = PIXELS) -> str:
    write_page(folder / "page.html", "visllama inspect weights=W", found or study(), [pixels])
    return (folder / "page.html").read_text()


def patch_study(side: int = 6, risky: bool = False):
    """Return a study of a connector with a vector for each patch."""
    found = study(risky)
    (picture,) = found.pictures
    rows = picture.reading.nearest[:1] * side**2
    shares = torch.rand(len(picture.words), side**2).tolist()
    picture = replace(picture, attention=shares, reading=replace(picture.reading, nearest=rows, unembedding=rows))
    return replace(found, about=found.about | {"is_patch_grid": True, "num_image_tokens": side**2}, pictures=[picture])


def test_it_holds_findings_charts_vectors_and_pictures(tmp_path):
    text = page(tmp_path)
    found = study()
    assert all(finding.replace("'", "&#39;") in text for finding in found.findings)
    assert "9/10" in text and "a red circle" in text and "visllama inspect weights=W" in text
    assert len(re.findall(r'class="?dot', text)) == 5 + 3 * 3 + 2, "a dot each ablation, and one a marker"
    assert text.count("--a:") == 3 * 3, "a cell for each word and vector"
    assert text.count('class="chip own">Ġred') == 6 * 5, "all tokens of both readings are a word of the references"


def test_a_patch_connector_has_a_map_for_each_word(tmp_path):
    text = page(tmp_path, patch_study())
    assert text.count("class=map ") == 3
    assert text.count('src="data:image/png;base64,') == 1 + 3, "the picture, and what is laid over it for each word"


def test_it_is_whole_and_asks_for_nothing(tmp_path):
    for found in (study(), patch_study()):
        text = page(tmp_path, found)
        assert "default-src 'none'" in text and "<script" not in text
        addresses = re.findall(r"(?:src=|href=|url\()[\"']?([^\"'> )]{0,5})", text)
        assert addresses and set(addresses) == {"data:"}


def test_what_data_says_is_text(tmp_path):
    for found in (study(risky=True), patch_study(risky=True)):
        text = page(tmp_path, found)
        assert "<script" not in text and text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 5


def test_eight_photos_of_576_patches_are_under_10_mb(tmp_path):
    """Noise of 336 pixels a side is the largest JPEG that there is."""
    found = patch_study(24)
    (picture,) = found.pictures
    words = [f"word{number}" for number in range(15)]
    attention = torch.rand(15, 576).tolist()
    many = replace(found, pictures=[replace(picture, words=words, attention=attention)] * 8)
    noise = torch.randint(0, 256, (3, 336, 336), dtype=torch.uint8)
    write_page(tmp_path / "page.html", "", many, [noise] * 8)
    assert (tmp_path / "page.html").stat().st_size < 10_000_000


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("is_dark", [False, True])
def test_a_browser_shows_it_at_any_width(tmp_path, is_dark):
    """Nothing hangs over the edge, no request leaves, what data says is shown, and the colours are those of the hour."""
    from tests.support.browser import open_browser

    page(tmp_path, patch_study(risky=True))
    with open_browser() as browser:
        for width in (1200, 390):
            browser.resize(width, 900, is_dark)
            browser.go(f"file://{tmp_path}/page.html")
            browser.wait_for("location.protocol === 'file:' && document.readyState === 'complete'")
            assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run("document.querySelectorAll('script').length") == 0
        assert browser.run("document.querySelector('.caption').innerText") == "<script>alert(1)</script>"
        background = browser.run("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(17, 20, 27)" if is_dark else "rgb(255, 255, 255)")
        assert all(address.startswith(("file:", "data:")) for address in browser.requests)
        assert browser.errors == []
