"""Write a conversation as HTML, in which texts are escaped and pictures are part of the page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from visllama.images.inline import data_address

_THUMBNAIL_PX = 256
"""The largest width and height of a picture in a conversation."""
_HINT = "Ask about pictures: add one or several, and type a question."


class ShownTurn(NamedTuple):
    """A turn of a conversation as the page shows it.

    Attributes:
        speaker: "you" or "model"; it becomes the CSS class of the turn, and is not escaped.
        text: The plain text of the turn, which is escaped when it is written as HTML.
        thumbnails: Small copies of the pictures of the turn, as `data:` addresses.
    """

    speaker: str
    text: str
    thumbnails: tuple[str, ...] = ()


def shown_turn(speaker: str, text: str, pictures: Sequence[Image.Image] = ()) -> ShownTurn:
    """Build a turn of a conversation for the page, with copies of its pictures of at most 256 pixels a side.

    Args:
        speaker: "you" or "model".
        text: The plain text of the turn.
        pictures: The pictures of the turn, in any size; they are not changed.
    """
    thumbnails = [_thumbnail(picture) for picture in pictures]
    return ShownTurn(speaker, text, tuple(thumbnails))


def as_page(turns: Sequence[ShownTurn]) -> str:
    """Return the HTML of a conversation, or of a hint how to begin if it has no turns.

    The last turn comes first in the HTML. The page's style reverses the order again, so that a browser keeps showing
    the last turn when one is added.

    Args:
        turns: The turns of the conversation, the first one first.
    """
    paragraphs = [_paragraph(turn) for turn in reversed(turns)]
    if not paragraphs:
        paragraphs.append(f'<p class="hint">{_HINT}</p>')

    content = "".join(paragraphs)
    return f'<div class="talk" role="log" aria-live="polite" tabindex="0">{content}</div>'


def _paragraph(turn: ShownTurn) -> str:
    """Return the HTML of a turn."""
    images = [f'<img src="{address}" alt="picture">' for address in turn.thumbnails]
    pictures = "".join(images)
    # An empty bubble would look as if the answer were still to come.
    text = html.escape(turn.text) or "<i>(nothing)</i>"
    return f'<p class="{turn.speaker}">{pictures}{text}</p>'


def _thumbnail(picture: Image.Image) -> str:
    """Return a small copy of a picture as a `data:` address."""
    small = picture.copy()
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))

    # JPEG would blur a drawing of a few pixels.
    is_small = max(picture.size) < _THUMBNAIL_PX
    file_format = "png" if is_small else "jpeg"
    return data_address(small, file_format)
