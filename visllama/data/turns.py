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
        prompt: What a human says to have a caption. Where it is empty, the caption follows its image directly.
        hint: What stands in a line behind a question.
        num_images: Images of the record.
    """
    if "conversations" in record:
        return [_turn(turn["from"], turn["value"]) for turn in record["conversations"]]

    if "questions" in record:
        question = record["questions"][item]
        text = question["question"]
        if hint:
            text = f"{text}\n{hint}"
        return [Turn("human", text, num_images), Turn("gpt", answer_of(question))]

    caption = record["captions"][item] if "captions" in record else ""
    if not prompt:
        return [Turn("gpt", caption, num_images)]
    return [Turn("human", prompt, num_images), Turn("gpt", caption)]


def _turn(speaker: str, text: str) -> Turn:
    """Return a turn of a conversation.

    Images that open it stand where the template has them; others stay where they are in the text.
    """
    if speaker != "human":
        return Turn(speaker, text)

    match = _OPENING_MARKS.match(text)
    assert match is not None  # the pattern matches an empty text too
    marks = match.group()

    if marks == text:
        # A turn of nothing but images keeps its marks: without them, no text would be left.
        return Turn(speaker, text, has_marks=True)
    return Turn(speaker, text[len(marks) :], marks.count(IMAGE_MARK), has_marks=True)


def num_items(record: Mapping) -> int:
    """Return the number of items in a record: its captions or questions; a conversation is one item."""
    for kind in ("captions", "questions"):
        if kind in record:
            return len(record[kind])
    return 1


def answer_of(question: Mapping) -> str:
    """Return the answer that was given most often to a question; the first of several that are equally frequent."""
    answers = question["answers"]
    return max(answers, key=answers.count)
