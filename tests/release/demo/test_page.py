"""The page in headless Chromium: what a person does, and that no request of it goes elsewhere."""

from __future__ import annotations

import base64
import json

import pytest
from PIL import Image

from tests.support.browser import open_browser
from tests.support.chromium import needs_chromium
from tests.support.demo_server import as_file, scene

pytestmark = [pytest.mark.browser, needs_chromium]

CAPTION = "document.querySelector('#caption textarea').value"
TOAST = "(document.querySelector('.toast-body')?.innerText ?? '')"
FILE = ".picture input[type=file]"
TALK = "document.querySelector('#talk .model')?.innerText ?? ''"


@pytest.fixture(scope="module")
def browser():
    with open_browser() as page:
        yield page


@pytest.fixture
def page(browser, demo):
    """A page that was just opened; whatever a test does, all that it asks for is ours, and no script of it fails."""
    browser.requests.clear()
    browser.errors.clear()
    browser.resize(1200, 900)
    browser.go(demo.address)
    browser.wait_for(f"!!document.querySelector('#caption') && !!document.querySelector('{FILE}')")
    yield browser
    own = (f"{demo.address}/", f"blob:{demo.address}/", "data:")
    assert browser.requests and [url for url in browser.requests if not url.startswith(own)] == []
    assert browser.errors == []


@pytest.fixture
def files(tmp_path):
    """Write a file for each name, and return their folder."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(as_file(scene(number)))
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "words.png").write_text("words")
    (tmp_path / "huge.png").write_bytes(as_file(Image.new("L", (10_000, 6_000))))
    (tmp_path / "heavy.bmp").write_bytes(as_file(Image.new("RGB", (1000, 500)), "BMP"))
    return tmp_path


def open_tab(page, name: str) -> None:
    page.click(f"[...document.querySelectorAll('button[role=tab]')].find(tab => tab.innerText.trim() === '{name}')")


def ask(page, text: str) -> None:
    page.run("document.querySelector('#typed textarea').focus()")
    page.type(text)
    page.press("Enter")


def test_a_caption_comes_at_once_and_its_words_show_where_they_looked(page, demo, files):
    page.choose_files(FILE, files / "0.png")
    said = page.wait_for(CAPTION)
    assert said == demo.models.choose("patches").pipeline.caption(scene(0), max_new_tokens=12)
    page.wait_for("document.querySelectorAll('#words input').length > 0")
    assert page.run("[...document.querySelectorAll('#words label')].map(e => e.innerText.trim()).join(' ')") == said
    page.click("document.querySelectorAll('#words input')[1]")
    page.wait_for("document.querySelector('#heat img')?.naturalWidth > 100")


def test_a_picture_is_pasted(page, demo):
    content = base64.b64encode(as_file(scene(1))).decode()
    page.run(
        f"""(() => {{
        const bytes = Uint8Array.from(atob({json.dumps(content)}), c => c.charCodeAt(0)), clipboard = new DataTransfer();
        clipboard.items.add(new File([bytes], "pasted.png", {{type: "image/png"}}));
        document.body.dispatchEvent(new ClipboardEvent("paste", {{clipboardData: clipboard, bubbles: true}}));
        }})()"""
    )
    assert page.wait_for(CAPTION) == demo.models.choose("patches").pipeline.caption(scene(1), max_new_tokens=12)


def test_an_example_is_clicked(page, demo):
    page.click("document.querySelector('.examples button[aria-label=\"Thumbnail 3 of 3\"]')")
    assert page.wait_for(CAPTION) == demo.models.choose("patches").pipeline.caption(scene(2), max_new_tokens=12)


def test_an_example_is_asked_about(page, demo):
    """The picture that was clicked stands in the question that is ready to be sent."""
    open_tab(page, "Chat")
    page.wait_for("!!document.querySelector('#typed textarea')?.offsetParent")
    page.click(
        "[...document.querySelectorAll('.examples button[aria-label=\"Thumbnail 3 of 3\"]')].find(e => e.offsetParent)"
    )
    page.wait_for("document.querySelectorAll('#typed img').length === 1")
    page.run("document.querySelector('#typed textarea').focus()")
    page.press("Enter")
    expected = demo.models.choose("patches").pipeline.chat().say("What is in the picture?", scene(2), max_new_tokens=12)
    page.wait_for(f"({TALK}).endsWith({json.dumps(expected)})")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("notes.txt", "Invalid file type"),
        ("words.png", "words.png is no picture that can be read"),
        ("huge.png", "huge.png is too large: 10000x6000"),
        ("heavy.bmp", "exceed the maximum allowed size of 1.0 Mb"),
    ],
)
def test_what_is_no_picture_is_told(page, files, name, says):
    """A text, one that claims to be none, 60 megapixels, and a file above the limit; then a picture is taken."""
    page.choose_files(FILE, files / name)
    message = page.wait_for(TOAST)
    assert says in message and "Traceback" not in message
    page.run("document.querySelectorAll('.toast-close').forEach(button => button.click())")
    page.run("document.querySelector('.picture button[aria-label=\"Remove Image\"]')?.click()")
    page.wait_for(f"!!document.querySelector('{FILE}')")
    page.choose_files(FILE, files / "0.png")
    page.wait_for(CAPTION)


def test_a_talk_about_two_pictures_comes_word_by_word(page, demo, files):
    open_tab(page, "Chat")
    page.wait_for("!!document.querySelector('#typed textarea')?.offsetParent")
    page.choose_files("#typed input[type=file]", files / "0.png", files / "1.png")
    page.wait_for("document.querySelectorAll('#typed img').length === 2")
    page.run(
        f"""window.texts = []; new MutationObserver(() => texts.push({TALK}))
        .observe(document.querySelector("#talk"), {{subtree: true, childList: true, characterData: true}})"""
    )
    chat = demo.models.choose("patches").pipeline.chat()
    expected = chat.say("<b>there</b> is", [scene(0), scene(1)], max_new_tokens=12)
    ask(page, "<b>there</b> is")
    page.wait_for(f"({TALK}) === {json.dumps(expected)}")
    lengths = page.run("texts.map(text => text.length)")
    assert len({length for length in lengths if 1 < length <= len(expected)}) >= 2, lengths
    assert page.run("document.querySelectorAll('#talk .you img').length") == 2
    assert "<b>there</b> is" in page.run("document.querySelector('#talk .you').innerText")

    ask(page, "and then")
    page.wait_for("document.querySelectorAll('#talk .model').length === 2")
    page.wait_for(f"({TALK}) === {json.dumps(chat.say('and then', max_new_tokens=12))}")
    ask(page, "red ring " * 300)
    assert "the language model has 512 positions" in page.wait_for(TOAST)
    assert page.run("document.querySelectorAll('#talk .model').length") == 2, "as it was before"
    page.click("document.querySelector('#anew')")
    page.wait_for("document.querySelectorAll('#talk .model').length === 0")


def test_two_weights_side_by_side(page, demo, files):
    open_tab(page, "Compare")
    page.wait_for("document.querySelectorAll('.side textarea').length === 2")
    inputs = (
        "[...document.querySelectorAll('.picture')].filter(e => e.offsetParent)[0].querySelector('input[type=file]')"
    )
    page.wait_for(f"!!{inputs}")
    page.run(f"{inputs}.id = 'compared'")
    page.choose_files("#compared", files / "2.png")
    page.wait_for("[...document.querySelectorAll('.side textarea')].every(e => e.value)")
    shown = page.run(
        "[...document.querySelectorAll('.side')].map(e => [e.innerText.trim(), e.querySelector('textarea').value])"
    )
    expected = [[model.name, model.pipeline.caption(scene(2), max_new_tokens=12)] for model in demo.models]
    assert shown == expected and shown[0][1] != shown[1][1]


def test_a_narrow_page_needs_no_scrolling_sideways_and_the_night_is_dark(page):
    for is_dark in (False, True):
        page.resize(390, 844, is_dark)
        page.call("Page.reload")
        page.wait_for(f"!!document.querySelector('#caption') && !!document.querySelector('{FILE}')")
        for name in ("Chat", "Compare", "Caption"):
            open_tab(page, name)
            page.wait_for("document.querySelectorAll('button[role=tab][aria-selected=true]').length > 0")
            assert page.run("document.documentElement.scrollWidth") <= 390
        colours = page.run("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number)")
        assert (max(colours) < 60) == is_dark and (min(colours) > 200) != is_dark
