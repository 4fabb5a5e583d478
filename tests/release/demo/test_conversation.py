"""A conversation as HTML holds what was said, and nothing of it is HTML."""

from __future__ import annotations

from PIL import Image

from visllama.release.demo.conversation import as_page, shown_turn


def test_words_are_words():
    page = as_page([shown_turn("you", "<b>a</b> & \"'"), shown_turn("model", "<img src=http://evil.example/a>")])
    assert "<b>" not in page and "<img" not in page
    assert "&lt;b&gt;a&lt;/b&gt; &amp; " in page


def test_the_last_turn_stands_first():
    page = as_page([shown_turn("you", "first"), shown_turn("model", "second")])
    assert page.index("second") < page.index("first")
    assert "Ask about pictures" in as_page([])


def test_pictures_are_inside_the_page_and_small():
    page = as_page([shown_turn("you", "a", [Image.new("RGB", (4000, 3000)), Image.new("RGB", (40, 30))])])
    assert page.count("<img") == 2 and 'src="data:image/jpeg' in page and 'src="data:image/png' in page
    assert len(page) < 10_000
