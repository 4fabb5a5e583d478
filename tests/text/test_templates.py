"""Each template's exact text, against what its authors' code writes; and templates of one's own."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from tests.support.conversations import CASES, SEEN, SYSTEM, TWO, text_of
from visllama.errors import ConfigError
from visllama.text.template import Template
from visllama.text.templates import TEMPLATES, find_template

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
USER, ASSISTANT = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))


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


def test_every_template_is_written_out_here():
    assert list(WRITTEN) == list(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("case", CASES)
def test_a_template_writes_its_authors_text(name, case):
    segments = TEMPLATES[name].segments(CASES[case])
    assert text_of(segments) == WRITTEN[name][list(CASES).index(case)]


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
