"""Templates as data, which write turns as segments of text, each supervised (a response) or not.

A template is a handful of strings with slots. In its own words the tokenizer's special tokens are meant as such; in the
texts that fill the slots they, and what looks like a marker or another template, are plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

IMAGE_MARK = "<image>"
"""The mark of an image in a turn of a conversation."""
SLOT = re.compile(r"(\{(?:system|images|human|response|bos|eos)\})")


class Segment(NamedTuple):
    """A piece of a sample.

    Attributes:
        text: The text that is read, or learned where it is supervised.
        supervised: Whether it is a response, or the end of one.
        kind: "text" is plain text, "template" has special tokens that are meant as such, "image" stands for an image
            span, and "end" for the template's end token. `TextEncoder.pieces` adds "special", one special token.
    """

    text: str
    supervised: bool = False
    kind: str = "text"


_IMAGE = Segment(IMAGE_MARK, kind="image")


class Turn(NamedTuple):
    """What one speaker says.

    Attributes:
        speaker: "system", "human" or "gpt".
        text: The words of the speaker.
        num_images: The number of images that stand before the text.
        has_marks: Whether each `IMAGE_MARK` in the text stands for an image.
    """

    speaker: str
    text: str
    num_images: int = 0
    has_marks: bool = False


@dataclass(frozen=True)
class Template:
    """A template by which turns are written.

    Attributes:
        human: The turn of a human, up to where the response begins. Its slots are `{human}`, and `{images}` for the
            images that stand before the text; without that slot they stand directly before `{human}`.
        with_system: The first turn of a human where there is a system text, whose slot is `{system}`.
        first: The first turn of a human where there is no system text; if it is empty, `human` is used.
        response: The turn of gpt, with the slot `{response}`; an empty response is written as its end token alone.
        end: The token that ends a response, `{eos}` for the tokenizer's eos. A tokenizer that has no such token uses
            its eos.
        image: The text behind each image that stands before a text.
        system: The system text of a record that brings none.
    """

    human: str
    with_system: str
    first: str = ""
    response: str = " {response}"
    end: str = "{eos}"
    image: str = ""
    system: str = ""

    def segments(self, turns: Sequence[Turn], answered: bool = True) -> list[Segment]:
        """Return the segments of turns.

        A response without a prompt's words before it (behind its image alone, as a caption) is written as it is.

        Args:
            turns: The turns: at most one system text, which is the first, then human and gpt by turns.
            answered: Whether the last response is there; if not, it is left out, since it is to be generated.
        """
        system = self.system
        for turn in turns:
            if turn.speaker == "system":
                system = turn.text
                break
        opening = self.with_system if system else self.first or self.human

        spoken = [turn for turn in turns if turn.speaker != "system"]
        segments: list[Segment] = []
        for number, turn in enumerate(spoken):
            if turn.speaker == "gpt":
                segments += [_IMAGE] * turn.num_images
                segments += self._response(turn.text, _ends_with_words(segments))
            else:
                form = opening if number == 0 else self.human
                segments += self._filled(form, turn, system)

        while not answered and segments and segments[-1].supervised:
            segments.pop()
        return segments

    def _response(self, text: str, prompted: bool) -> list[Segment]:
        """Return a response and its end; the form of the template is for one that has a prompt."""
        if prompted and text:
            text = self.response.replace("{response}", text)
        return [Segment(text, True), Segment(self.end, True, "end")]

    def _filled(self, form: str, turn: Turn, system: str) -> Iterator[Segment]:
        """Yield the segments of a human's turn: the words of the template, and what fills its slots."""
        images = [_IMAGE, Segment(self.image, kind="template")] * turn.num_images
        has_image_slot = "{images}" in form
        for piece in SLOT.split(form):
            if piece == "{images}":
                yield from images
            elif piece == "{human}":
                if not has_image_slot:
                    yield from images
                yield from _around_images(turn)
            elif piece == "{system}":
                yield Segment(system)
            else:
                yield Segment(piece, kind="template")


def _ends_with_words(segments: list[Segment]) -> bool:
    """Return whether the last segment that is not empty holds words, and not an image or an end token."""
    for segment in reversed(segments):
        if segment.text:
            return segment.kind in ("text", "template")
    return False


def _around_images(turn: Turn) -> Iterator[Segment]:
    """Yield the text of a turn, with the images that stand in it."""
    pieces = turn.text.split(IMAGE_MARK) if turn.has_marks else [turn.text]
    for number, piece in enumerate(pieces):
        if number > 0:
            yield _IMAGE
        yield Segment(piece)
