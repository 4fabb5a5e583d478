"""Templates as data, and what they make of turns: segments of text, each supervised (a response) or not.

A template is a handful of strings with slots. In its own words the tokenizer's special tokens are meant as such; in the
texts that fill the slots they, and what looks like a marker or another template, are plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

IMAGE_MARK = "<image>"
"""Where an image stands in a turn of a conversation."""
SLOT = re.compile(r"(\{(?:system|images|human|response|bos|eos)\})")


class Segment(NamedTuple):
    """A piece of a sample.

    Attributes:
        text: What is read, or learned where it is supervised.
        supervised: A response, or the end of one.
        kind: "text" is plain, in "template" special tokens are meant, an "image" stands for its span, and "end" for the
            template's end token.
    """

    text: str
    supervised: bool = False
    kind: str = "text"


_IMAGE = Segment(IMAGE_MARK, kind="image")


class Turn(NamedTuple):
    """What one side says.

    Attributes:
        speaker: "system", "human" or "gpt".
        text: Its words; `IMAGE_MARK` stands for an image in it where `has_marks`.
        num_images: Images that stand before it.
    """

    speaker: str
    text: str
    num_images: int = 0
    has_marks: bool = False


@dataclass(frozen=True)
class Template:
    """How turns are written.

    Attributes:
        human: What a human says, up to where the response begins. Slots: `{human}`, and `{images}` for the images that
            stand before the text (directly before `{human}` where it has no such slot).
        with_system: The same for the first turn, where there is a `{system}` text.
        first: The same for the first turn where there is none; empty is as `human`.
        response: Slot `{response}`; an empty response is its end token alone.
        end: The token that ends a response; `{eos}`, or the tokenizer's eos where it knows no such token.
        image: What follows an image that stands before a text.
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
        """Write turns: system at most once and first, then human and gpt by turns.

        A response that no prompt's words stand before (behind its image alone, as a caption does) is written as it is.
        Unless `answered`, the last response is left out: it is to be generated.
        """
        system = next((turn.text for turn in turns if turn.speaker == "system"), self.system)
        spoken = [turn for turn in turns if turn.speaker != "system"]
        made: list[Segment] = []
        for number, turn in enumerate(spoken):
            if turn.speaker == "gpt":
                made += [_IMAGE] * turn.num_images
                made += self._response(turn.text, _ends_with_words(made))
            else:
                opening = self.with_system if system else self.first or self.human
                made += self._filled(opening if number == 0 else self.human, turn, system)
        while not answered and made and made[-1].supervised:
            made.pop()
        return made

    def _response(self, text: str, prompted: bool) -> list[Segment]:
        written = self.response.replace("{response}", text) if prompted and text else text
        return [Segment(written, True), Segment(self.end, True, "end")]

    def _filled(self, form: str, turn: Turn, system: str) -> Iterator[Segment]:
        images = [_IMAGE, Segment(self.image, kind="template")] * turn.num_images
        for piece in SLOT.split(form):
            if piece == "{images}":
                yield from images
            elif piece == "{human}":
                yield from [] if "{images}" in form else images
                yield from _around_images(turn)
            elif piece == "{system}":
                yield Segment(system)
            else:
                yield Segment(piece, kind="template")


def _ends_with_words(segments: list[Segment]) -> bool:
    return next((segment.kind in ("text", "template") for segment in reversed(segments) if segment.text), False)


def _around_images(turn: Turn) -> Iterator[Segment]:
    for number, text in enumerate(turn.text.split(IMAGE_MARK) if turn.has_marks else [turn.text]):
        yield from [_IMAGE] if number else []
        yield Segment(text)
