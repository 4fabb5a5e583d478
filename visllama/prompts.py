"""Turn a record's texts into segments: pieces of text, each supervised (a response) or not (a prompt)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """A piece of a sample: text to read, or text to learn and end with EOS."""

    text: str
    supervised: bool


def caption_segments(prompt: str, caption: str | None) -> list[Segment]:
    """Give the prompt, then the caption as response (None: a prompt to be answered, as in generation).

    A response behind a prompt starts with a space, as words do inside a text; behind nothing it starts the text.
    """
    segments = [Segment(prompt, supervised=False)] if prompt else []
    if caption is None:
        return segments
    return [*segments, Segment(f" {caption}" if prompt else caption, supervised=True)]
