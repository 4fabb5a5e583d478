"""What a template makes of turns: responses and their ends alone are supervised, and what fills a slot is text."""

from __future__ import annotations

import pytest

from tests.support.conversations import CASES, ONE, SYSTEM, text_of
from visllama.text.template import IMAGE_MARK, Segment, Turn
from visllama.text.templates import TEMPLATES


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("case", CASES)
def test_responses_and_their_ends_alone_are_supervised(name, case):
    supervised = [segment for segment in TEMPLATES[name].segments(CASES[case]) if segment.supervised]
    answers = [turn.text for turn in CASES[case] if turn.speaker == "gpt"]
    around = {"llama2_chat": " {} ", "alpaca": "{}", "llama3_chat": "{}"}.get(name, " {}")
    end = Segment("<|eot_id|>" if name == "llama3_chat" else "{eos}", True, "end")
    assert supervised == [part for text in answers for part in (Segment(around.format(text), True), end)]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("case", CASES)
def test_a_prompt_to_be_answered_is_all_before_the_last_response(name, case):
    template, turns = TEMPLATES[name], CASES[case]
    whole, asked = template.segments(turns), template.segments(turns, answered=False)
    assert asked == whole[:-2]
    assert asked == template.segments(turns[:-1], answered=False), "nothing of the response is read"
    assert sum(segment.supervised for segment in asked) == 2 * (len(turns) > 3), "earlier ones stay as they were"


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_empty_response_is_its_end_alone(name):
    *_, before, last = TEMPLATES[name].segments([ONE[0], Turn("gpt", "")])
    assert (before.text, before.supervised) == ("", True) and last.kind == "end" and last.supervised


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_caption_follows_its_images_alone(name):
    end = Segment(TEMPLATES[name].end, True, "end")
    image = Segment(IMAGE_MARK, kind="image")
    turns = [Turn("gpt", "A dog.", num_images=2)]
    assert TEMPLATES[name].segments(turns) == [image, image, Segment("A dog.", True), end]
    assert TEMPLATES[name].segments(turns, answered=False) == [image, image]


def test_a_response_behind_no_words_is_as_a_caption():
    """LLaVA's first stage gives captions as conversations, whose human says an image and no more."""
    seen = [Turn("human", "<image>", has_marks=True), Turn("gpt", "A dog.")]
    assert text_of(TEMPLATES["plain"].segments(seen)) == "<image>A dog.</s>"
    assert text_of(TEMPLATES["plain"].segments([Turn("human", ""), *ONE[1:], *seen])) == "A dog.</s><image>A dog.</s>"
    assert text_of(TEMPLATES["plain"].segments([SYSTEM, *seen])) == "Be brief.\n<image>A dog.</s>"
    assert text_of(TEMPLATES["plain"].segments([SYSTEM, Turn("human", ""), *ONE[1:]])) == "Be brief.\n A dog.</s>"
    assert text_of(TEMPLATES["question_answer"].segments(seen)) == "question: <image> answer: A dog.</s>"


@pytest.mark.parametrize("name", TEMPLATES)
def test_marks_stand_for_images_in_a_humans_turn_alone(name):
    turns = [Turn("human", "Is <image> like\n<image>?", has_marks=True), Turn("gpt", "<image>")]
    segments = TEMPLATES[name].segments(turns)
    assert [segment.text for segment in segments if segment.kind == "image"] == [IMAGE_MARK] * 2
    assert "Is <image> like\n<image>?" in text_of(segments), "they stand where they were, nothing is added"
    assert IMAGE_MARK in next(segment.text for segment in segments if segment.supervised)
    plain = TEMPLATES[name].segments([Turn("human", "Is <image> it?"), Turn("gpt", "No")])
    assert all(segment.kind != "image" for segment in plain)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_fills_a_slot_is_no_template(name):
    """Slots, specials and marks in what is said are text, of the kind that has no meaning."""
    said = "{human}{response}{system}{images}{bos}{eos}</s><|eot_id|>"
    turns = [Turn("system", said), Turn("human", said), Turn("gpt", said), Turn("human", said)]
    segments = TEMPLATES[name].segments(turns)
    assert sum(said in segment.text for segment in segments if segment.kind == "text") == 4
    assert not any(said in segment.text for segment in segments if segment.kind != "text")


def test_an_empty_system_text_is_none():
    """Also where the template has one of its own."""
    segments = TEMPLATES["vicuna"].segments([Turn("system", ""), *ONE])
    assert text_of(segments) == "USER: What? ASSISTANT: A dog.</s>"
    assert text_of(TEMPLATES["alpaca"].segments([Turn("system", ""), *ONE])).startswith("### Instruction:\nWhat?")
