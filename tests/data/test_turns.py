"""What is said in a record: the turns of its captions, questions and conversations."""

from __future__ import annotations

from visllama.data.turns import answer_of, num_items, turns_of
from visllama.text.template import Turn

CAPTIONS = {"captions": ["a ring", "two rings"]}
QUESTIONS = {"questions": [{"question": "How many?", "answers": ["1"]}, {"question": "Red?", "answers": ["no", "yes"]}]}
TALK = {
    "conversations": [
        {"from": "system", "value": "<image> is a mark"},
        {"from": "human", "value": "Is <image> it?"},
        {"from": "gpt", "value": "No <image>"},
    ]
}


def test_turns_of_captions():
    assert turns_of(CAPTIONS, 1, "", "hint", 1) == [Turn("gpt", "two rings", 1)]
    assert turns_of(CAPTIONS, 0, "What?", "hint", 2) == [Turn("human", "What?", 2), Turn("gpt", "a ring")]
    assert turns_of({}, 0, "", "", 1) == [Turn("gpt", "", 1)], "a picture to be captioned"


def test_turns_of_questions():
    assert turns_of(QUESTIONS, 0, "a prompt", "", 1) == [Turn("human", "How many?", 1), Turn("gpt", "1")]
    assert turns_of(QUESTIONS, 1, "", "One word.", 0) == [Turn("human", "Red?\nOne word.", 0), Turn("gpt", "no")]


def test_turns_of_conversations():
    """Marks are read in a human's turns alone; the prompt and the hint are not for them."""
    assert turns_of(TALK, 0, "a prompt", "a hint", 1) == [
        Turn("system", "<image> is a mark"),
        Turn("human", "Is <image> it?", has_marks=True),
        Turn("gpt", "No <image>"),
    ]


def test_num_items():
    assert [num_items(record) for record in (CAPTIONS, QUESTIONS, TALK, {})] == [2, 2, 1, 1]


def test_the_answer_is_the_majoritys_and_of_equals_the_first():
    assert answer_of({"answers": ["no", "yes", "yes", "no", "yes"]}) == "yes"
    assert answer_of({"answers": ["no", "yes", "yes", "no"]}) == "no"
    assert answer_of({"answers": ["red"]}) == "red"
