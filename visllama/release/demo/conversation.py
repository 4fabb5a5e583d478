"""A conversation as HTML: every word escaped, pictures inside the page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from visllama.images.inline import data_address

_THUMBNAIL_PX = 256
_HINT = "Ask about pictures: add one or several, and type a question."


class ShownTurn(NamedTuple):
    """What the page shows of a turn.

    Attributes:
        speaker: "you" or "model".
        text: The words.
        thumbnails: The pictures, as addresses that hold them.
    """

    speaker: str
    text: str
    thumbnails: tuple[str, ...] = ()


def shown_turn(speaker: str, text: str, pictures: Sequence[Image.Image] = ()) -> ShownTurn:
    """Return what the page shows of a turn."""
    return ShownTurn(speaker, text, tuple(map(_thumbnail, pictures)))


def as_page(turns: Sequence[ShownTurn]) -> str:
    """Return the HTML of a conversation, the last turn first: the page turns it round, and so stays at its end."""
    said = "".join(map(_paragraph, reversed(turns))) or f'<p class="hint">{_HINT}</p>'
    return f'<div class="talk" role="log" aria-live="polite" tabindex="0">{said}</div>'


def _paragraph(turn: ShownTurn) -> str:
    pictures = "".join(f'<img src="{address}" alt="picture">' for address in turn.thumbnails)
    text = html.escape(turn.text) or "<i>(nothing)</i>"
    return f'<p class="{turn.speaker}">{pictures}{text}</p>'


def _thumbnail(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    return data_address(small, "png" if max(picture.size) < _THUMBNAIL_PX else "jpeg")
