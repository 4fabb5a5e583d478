"""What is said in a record: the turns of one of its items."""

from __future__ import annotations

import re
from collections.abc import Mapping

from visllama.text.template import IMAGE_MARK, Turn

_OPENING_MARKS = re.compile(rf"(?:{re.escape(IMAGE_MARK)}\s*)*")


def turns_of(record: Mapping, item: int, prompt: str, hint: str, num_images: int) -> list[Turn]:
    """Return the turns of one thing to learn in a record.

    Args:
        record: With `captions`, `questions` or `conversations`; one with none of them is to be captioned.
        item: Which caption or question.
        prompt: What a human says to have a caption; empty: nothing, the caption follows its image.
        hint: What stands in a line behind a question.
        num_images: Images of the record.
    """
    if "conversations" in record:
        return [_turn(said["from"], said["value"]) for said in record["conversations"]]
    if "questions" in record:
        asked = record["questions"][item]
        question = f"{asked['question']}\n{hint}" if hint else asked["question"]
        return [Turn("human", question, num_images), Turn("gpt", answer_of(asked))]
    caption = record["captions"][item] if "captions" in record else ""
    if not prompt:
        return [Turn("gpt", caption, num_images)]
    return [Turn("human", prompt, num_images), Turn("gpt", caption)]


def _turn(speaker: str, text: str) -> Turn:
    """Return a turn of a conversation; images that open it stand where the template has them, others where they are."""
    if speaker != "human":
        return Turn(speaker, text)
    marks = _OPENING_MARKS.match(text).group()
    if marks == text:
        return Turn(speaker, text, has_marks=True)
    return Turn(speaker, text[len(marks) :], marks.count(IMAGE_MARK), has_marks=True)


def num_items(record: Mapping) -> int:
    """Return the number of items in a record: its captions or questions; a conversation is one item."""
    kind = next((kind for kind in ("captions", "questions") if kind in record), None)
    return len(record[kind]) if kind else 1


def answer_of(asked: Mapping) -> str:
    """Return the answer that most gave to a question, of equals the first."""
    return max(asked["answers"], key=asked["answers"].count)
