"""Turn an item of a record (a caption, a question or a conversation) into turns: what human and gpt say in it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from visllama.text.template import IMAGE_MARK, Turn

_OPENING_MARKS = re.compile(rf"(?:{re.escape(IMAGE_MARK)}\s*)*")


def turns_of(record: Mapping, item: int, prompt: str, hint: str, num_images: int) -> list[Turn]:
    """Return the turns of one caption or question of a record, or of its conversation.

    A caption makes a human's turn with the prompt, and gpt's with the caption. A question makes a human's turn, and
    gpt's with the most frequent answer. A conversation has its own turns.

    Args:
        record: A record with `captions`, `questions` or `conversations`. With none of them it is to be captioned: the
            caption is empty.
        item: The number of the caption or question, from 0; not used for a conversation.
        prompt: What a human says to have a caption. Where it is empty, gpt's turn with the caption is the only one.
        hint: A text that is added to a question, in a line of its own; empty adds nothing.
        num_images: The number of images before the text of the first turn; not used for a conversation, whose marks
            say where its images stand.

    Raises:
        IndexError: If `item` is not less than the number of captions or questions.
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

    # Without a human's turn, the images stand directly before the caption.
    if not prompt:
        return [Turn("gpt", caption, num_images)]
    return [Turn("human", prompt, num_images), Turn("gpt", caption)]


def _turn(speaker: str, text: str) -> Turn:
    """Return a turn of a conversation, with the image marks that open a human's text counted instead of written.

    The template has a place for images that open a turn; others stay where they are in the text.
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
    """Return the number of captions or questions of a record; 1 for a conversation, or a record without any text."""
    for kind in ("captions", "questions"):
        if kind in record:
            return len(record[kind])
    return 1


def answer_of(question: Mapping) -> str:
    """Return the most frequent of a question's answers; of several that are equally frequent, the first in the list.

    Args:
        question: A question of a record, with a list of texts under `answers`.

    Raises:
        ValueError: If the list is empty.
    """
    answers = question["answers"]
    return max(answers, key=answers.count)
