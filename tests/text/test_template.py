"""Templates as data: each one's exact text, against what its authors' code writes; and what turns a record holds."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from visllama.data.turns import answer_of, num_items, turns_of
from visllama.errors import ConfigError
from visllama.text.template import IMAGE_MARK, Segment, Template, Turn
from visllama.text.templates import TEMPLATES, find_template

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
USER, ASSISTANT = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))

SYSTEM = Turn("system", "Be brief.")
ONE = [Turn("human", "What?"), Turn("gpt", "A dog.")]
TWO = [*ONE, Turn("human", "Sure?"), Turn("gpt", "Yes.")]
SEEN = [Turn("human", "What?", num_images=1), Turn("gpt", "A dog.")]
SEEN_TWICE = [Turn("human", "What?", num_images=2), Turn("gpt", "A dog.")]

# Each template's text of: one turn; two; one with a system text; one with an image; one with both, and two images.
WRITTEN = {
    "plain": [
        "What? A dog.</s>",
        "What? A dog.</s>Sure? Yes.</s>",
        "Be brief.\nWhat? A dog.</s>",
        "<image>What? A dog.</s>",
        "<image><image>Be brief.\nWhat? A dog.</s>",
    ],
    "question_answer": [
        "question: What? answer: A dog.</s>",
        "question: What? answer: A dog.</s>question: Sure? answer: Yes.</s>",
        "Be brief.\nquestion: What? answer: A dog.</s>",
        "<image>question: What? answer: A dog.</s>",
        "<image><image>Be brief.\nquestion: What? answer: A dog.</s>",
    ],
    "original": [  # Visual-LLaMA's preprocess.py, but for the end token, which it never wrote
        "[quest] What? [ans] A dog.</s>",
        "[quest] What? [ans] A dog.</s>[quest] Sure? [ans] Yes.</s>",
        "Be brief.\n[quest] What? [ans] A dog.</s>",
        "<image>[quest] What? [ans] A dog.</s>",
        "<image><image>Be brief.\n[quest] What? [ans] A dog.</s>",
    ],
    "alpaca": [  # alpaca-lora's templates/alpaca.json, which knows one turn
        f"{ALPACA_SYSTEM}\n\n### Instruction:\nWhat?\n\n### Response:\nA dog.</s>",
        f"{ALPACA_SYSTEM}\n\n### Instruction:\nWhat?\n\n### Response:\nA dog.</s>"
        "\n\n### Instruction:\nSure?\n\n### Response:\nYes.</s>",
        "Be brief.\n\n### Instruction:\nWhat?\n\n### Response:\nA dog.</s>",
        f"{ALPACA_SYSTEM}\n\n### Instruction:\n<image>\nWhat?\n\n### Response:\nA dog.</s>",
        "Be brief.\n\n### Instruction:\n<image>\n<image>\nWhat?\n\n### Response:\nA dog.</s>",
    ],
    "vicuna": [  # LLaVA's vicuna_v1
        f"{VICUNA_SYSTEM} USER: What? ASSISTANT: A dog.</s>",
        f"{VICUNA_SYSTEM} USER: What? ASSISTANT: A dog.</s>USER: Sure? ASSISTANT: Yes.</s>",
        "Be brief. USER: What? ASSISTANT: A dog.</s>",
        f"{VICUNA_SYSTEM} USER: <image>\nWhat? ASSISTANT: A dog.</s>",
        "Be brief. USER: <image>\n<image>\nWhat? ASSISTANT: A dog.</s>",
    ],
    "llama2_chat": [  # meta-llama/llama, behind the first BOS
        "[INST] What? [/INST] A dog. </s>",
        "[INST] What? [/INST] A dog. </s><s>[INST] Sure? [/INST] Yes. </s>",
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhat? [/INST] A dog. </s>",
        "[INST] <image>\nWhat? [/INST] A dog. </s>",
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>\n<image>\nWhat? [/INST] A dog. </s>",
    ],
    "llama3_chat": [  # meta-llama/llama3, behind <|begin_of_text|>
        f"{USER}What?<|eot_id|>{ASSISTANT}A dog.<|eot_id|>",
        f"{USER}What?<|eot_id|>{ASSISTANT}A dog.<|eot_id|>{USER}Sure?<|eot_id|>{ASSISTANT}Yes.<|eot_id|>",
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        f"{USER}What?<|eot_id|>{ASSISTANT}A dog.<|eot_id|>",
        f"{USER}<image>\nWhat?<|eot_id|>{ASSISTANT}A dog.<|eot_id|>",
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        f"{USER}<image>\n<image>\nWhat?<|eot_id|>{ASSISTANT}A dog.<|eot_id|>",
    ],
}
CASES = {"one": ONE, "two": TWO, "system": [SYSTEM, *ONE], "image": SEEN, "all": [SYSTEM, *SEEN_TWICE]}


def text_of(segments: list[Segment]) -> str:
    """Join segments, `{bos}` and `{eos}` filled where a template may say them."""
    return "".join(
        text.replace("{bos}", "<s>").replace("{eos}", "</s>") if kind in ("template", "end") else text
        for text, _, kind in segments
    )


def test_every_template_is_written_out_here():
    assert list(WRITTEN) == list(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("case", CASES)
def test_a_template_writes_its_authors_text(name, case):
    segments = TEMPLATES[name].segments(CASES[case])
    assert text_of(segments) == WRITTEN[name][list(CASES).index(case)]


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


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_found_by_name_and_by_its_strings(name):
    assert find_template(name) is TEMPLATES[name]
    assert find_template(asdict(TEMPLATES[name])) == TEMPLATES[name]


def test_strings_of_ones_own_need_the_humans_alone():
    mine = find_template({"human": "Q: {human}\nA:"})
    assert mine == Template(human="Q: {human}\nA:", with_system="{system}\nQ: {human}\nA:")
    assert text_of(mine.segments([SYSTEM, *TWO])) == "Be brief.\nQ: What?\nA: A dog.</s>Q: Sure?\nA: Yes.</s>"
    other = find_template({"human": "{human}=", "response": "{response}", "end": "<|im_end|>", "image": " "})
    assert text_of(other.segments(SEEN)) == "<image> What?=A dog.<|im_end|>"


def test_strings_of_ones_own_with_another_first_turn():
    """The system text stands before the first turn's form, whose BOS is there already."""
    mine = find_template({"human": "{bos}Q {human} A", "first": "Q {human} A"})
    assert text_of(mine.segments([SYSTEM, *TWO])) == "Be brief.\nQ What? A A dog.</s><s>Q Sure? A Yes.</s>"


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (
            "vicuña",
            "template=vicuña: choose plain, question_answer, original, alpaca, vicuna, llama2_chat, llama3_chat, tokenizer",
        ),
        ({"response": "{response}"}, "template.human"),
        ({"human": "{human}", "humam": "x"}, "template.humam"),
        ({"human": "{human}", "end": 3}, "template.end"),
        ({"human": "USER:"}, "template.human='USER:': has no {human}"),
        ({"human": "{human}", "first": "Hi"}, "template.first='Hi': has no {human}"),
        ({"human": "{human}", "with_system": "S {human}"}, "template.with_system='S {human}': has no {system}"),
        ({"human": "{human}", "with_system": "{system}"}, "template.with_system='{system}': has no {human}"),
        ({"human": "{human}", "response": "x"}, "template.response='x': has no {response}"),
    ],
)
def test_what_is_no_template_is_refused(chosen, said):
    with pytest.raises(ConfigError) as error:
        find_template(chosen)
    assert said in str(error.value)


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
