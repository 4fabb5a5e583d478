"""The tab of captions without a browser: where a word looked is shown for words that there are."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from visllama.images.transform import ImageTransform
from visllama.inference.attention import Looked
from visllama.release.demo.caption_tab import CaptionTab
from visllama.release.demo.sessions import Session


@pytest.fixture
def session():
    """Return the memory of a page whose picture was captioned by two words."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "green").save(file, "PNG")
    transform = ImageTransform(size_px=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    looked = Looked("a square", ["a", "square"], [np.eye(2), np.ones((2, 2))], transform)
    return Session(pictures={"caption": file.getvalue()}, looked=looked)


def look(session: Session, word: object):
    """Return what the page shows when a visitor has chosen a word."""
    tab = CaptionTab(SimpleNamespace(session=lambda request: session))
    return tab._look(request=None, word=word)


def test_a_word_has_a_heat_map(session):
    heat = look(session, 1)
    assert heat.visible and heat.label == "Where “square” looked"


@pytest.mark.parametrize("word", [2, -1, None, "1", 1.0, [0]])
def test_what_is_no_word_has_none(session, word):
    """The page's values come from the client, which may send anything."""
    assert not look(session, word).visible


def test_without_a_caption_there_is_none(session):
    session.looked = None
    assert not look(session, 0).visible
