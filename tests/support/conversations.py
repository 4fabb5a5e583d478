"""Short conversations, and the text that a template makes of them."""

from __future__ import annotations

from visllama.text.template import Segment, Turn

SYSTEM = Turn("system", "Be brief.")
ONE = [Turn("human", "What?"), Turn("gpt", "A dog.")]
TWO = [*ONE, Turn("human", "Sure?"), Turn("gpt", "Yes.")]
SEEN = [Turn("human", "What?", num_images=1), Turn("gpt", "A dog.")]
SEEN_TWICE = [Turn("human", "What?", num_images=2), Turn("gpt", "A dog.")]
CASES = {"one": ONE, "two": TWO, "system": [SYSTEM, *ONE], "image": SEEN, "all": [SYSTEM, *SEEN_TWICE]}


def text_of(segments: list[Segment]) -> str:
    """Join segments, `{bos}` and `{eos}` filled where a template may say them."""
    return "".join(
        text.replace("{bos}", "<s>").replace("{eos}", "</s>") if kind in ("template", "end") else text
        for text, _, kind in segments
    )
