"""A conversation as HTML, in which every word is escaped and pictures are part of the page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from visllama.images.inline import data_address

_THUMBNAIL_PX = 256
_HINT = "Ask about pictures: add one or several, and type a question."


class ShownTurn(NamedTuple):
    """A turn as the page shows it.

    Attributes:
        speaker: "you" or "model".
        text: The words of the turn.
        thumbnails: The pictures of the turn, as `data:` addresses.
    """

    speaker: str
    text: str
    thumbnails: tuple[str, ...] = ()


def shown_turn(speaker: str, text: str, pictures: Sequence[Image.Image] = ()) -> ShownTurn:
    """Return a turn as the page shows it.

    Args:
        speaker: "you" or "model".
        text: The words of the turn.
        pictures: The pictures of the turn, in any size.
    """
    thumbnails = tuple(_thumbnail(picture) for picture in pictures)
    return ShownTurn(speaker, text, thumbnails)


def as_page(turns: Sequence[ShownTurn]) -> str:
    """Return the HTML of a conversation, the last turn first.

    The page's style reverses the order again, by which a browser stays at the end when a turn is added.
    """
    paragraphs = "".join(_paragraph(turn) for turn in reversed(turns))
    content = paragraphs or f'<p class="hint">{_HINT}</p>'
    return f'<div class="talk" role="log" aria-live="polite" tabindex="0">{content}</div>'


def _paragraph(turn: ShownTurn) -> str:
    """Return the HTML of a turn."""
    pictures = "".join(f'<img src="{address}" alt="picture">' for address in turn.thumbnails)
    # An empty bubble would look as if the answer were still to come.
    text = html.escape(turn.text) or "<i>(nothing)</i>"
    return f'<p class="{turn.speaker}">{pictures}{text}</p>'


def _thumbnail(picture: Image.Image) -> str:
    """Return a small copy of a picture as a `data:` address."""
    small = picture.copy()
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))

    # JPEG would blur a drawing of a few pixels.
    file_format = "png" if max(picture.size) < _THUMBNAIL_PX else "jpeg"
    return data_address(small, file_format)
