"""Templates, which write the turns of a conversation as pieces of text, each supervised (learned, a response) or not.

A template is a handful of strings with slots, such as "USER: {human} ASSISTANT:". The spelling of a special token of
the tokenizer, as "</s>", means that token in these strings. In the texts that fill the slots it is plain text, and so
are slots and words of other templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

IMAGE_MARK = "<image>"
"""The text that stands for an image in a turn of a conversation."""
SLOT = re.compile(r"(\{(?:system|images|human|response|bos|eos)\})")
"""Matches one of the slots that the strings of a template may hold; its group is the slot with its braces."""


class Segment(NamedTuple):
    """A piece of a training sample, before it is tokenised.

    Attributes:
        text: The text of the piece; of an image, `IMAGE_MARK`.
        supervised: Whether the model learns to write this piece: True for a response and for the token that ends it.
        kind: "text" is plain text; "template" is a template's own text, in which special tokens are meant as such;
            "image" is one image; "end" is the token that ends a response, as the template names it.
            `TextEncoder.pieces` yields one kind more, "special", which is one special token of the tokenizer.
    """

    text: str
    supervised: bool = False
    kind: str = "text"


_IMAGE = Segment(IMAGE_MARK, kind="image")


class Turn(NamedTuple):
    """What one speaker of a conversation says, once.

    Attributes:
        speaker: "system" (instructions to the model), "human" (a prompt) or "gpt" (a response of the model).
        text: What is said.
        num_images: The number of images that stand before the text.
        has_marks: Whether each `IMAGE_MARK` in the text stands for an image; if not, it is plain text. Images at
            marks are not counted in `num_images`. A mark in a "gpt" or "system" turn is always plain text.
    """

    speaker: str
    text: str
    num_images: int = 0
    has_marks: bool = False


@dataclass(frozen=True)
class Template:
    """The strings by which the turns of a conversation are written as text.

    `{bos}` and `{eos}` stand for the tokenizer's tokens in `human`, `with_system`, `first`, `image` and `end`. Nothing
    is checked here: `find_template` checks the slots of a user's own strings.

    Attributes:
        human: The form of a human's turn, up to where the response begins. The slot `{human}` takes the turn's text,
            and `{images}` the images before that text; without `{images}` they stand directly before `{human}`.
        with_system: The form of the first human turn of a conversation that has a system text, with the slots
            `{system}` and `{human}`.
        first: The form of the first human turn of a conversation without a system text; if empty, `human` is used.
        response: The form of a response, with the slot `{response}`. An empty response is written as its end token
            alone.
        end: The special token that ends each response; "{eos}" is the tokenizer's eos, which is also used where the
            tokenizer has no special token of this text.
        image: The text behind each image that stands before a human's text; empty for none.
        system: The system text of a conversation that brings none; empty for none.
    """

    human: str
    with_system: str
    first: str = ""
    response: str = " {response}"
    end: str = "{eos}"
    image: str = ""
    system: str = ""

    def segments(self, turns: Sequence[Turn], answered: bool = True) -> list[Segment]:
        """Return the segments (pieces of text and images) that a conversation is written as, in their order.

        The turns are not checked: a speaker of another name counts as "human". The form `response` is for a
        response to a text. A response that directly follows an image, as a caption does, is written without that form.
        Each response is followed by a segment of the kind "end".

        Args:
            turns: The turns of the conversation: a system turn or none, then human and gpt by turns. A conversation may
                also be one turn of gpt alone.
            answered: False leaves out the response at the end and its end token, if there is one: the segments are then
                the prompt from which that response is to be generated.
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

        # A response consists of two supervised segments: its text and its end.
        while not answered and segments and segments[-1].supervised:
            segments.pop()
        return segments

    def _response(self, text: str, prompted: bool) -> list[Segment]:
        """Return the two segments of a response: its text, in the template's form if it is prompted, and its end."""
        if prompted and text:
            text = self.response.replace("{response}", text)
        return [Segment(text, True), Segment(self.end, True, "end")]

    def _filled(self, form: str, turn: Turn, system: str) -> Iterator[Segment]:
        """Yield the segments of a human's turn: the template's own text, and what fills its slots."""
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
    """Return whether the last segment that is not empty is text, and not an image or an end token."""
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
