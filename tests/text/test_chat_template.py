"""A tokenizer's own chat template, read as one of ours, writes what the tokenizer itself writes."""

from __future__ import annotations

import copy
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.small_tokenizers import CHATML, LLAMA3_CHAT, TOKENIZERS, byte_level_bpe, llama3, sentencepiece_llama
from visllama.errors import ConfigError
from visllama.text.chat_template import read_chat_template
from visllama.text.template import Template, Turn
from visllama.text.templates import OF_TOKENIZER, find_template

# Two of these templates strip what is said, which ours does not: these begin and end with no space, nor does a line
# break stand there. What a slot is called, a special token or a mark in them is text to either.
WORDS = ["Hi", "a dog", "{human}", "{{ x }}", "</s>", "<|eot_id|>", "[/INST]", "<image>", "😀", "U1\nU2", "é", "  "]
said = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join).map(str.strip).filter(bool)
conversations = st.tuples(st.none() | said, st.lists(said, min_size=1, max_size=8))


def with_template(tokenizer, chat_template: str | None):
    """Return a copy, the one that tests share stays as it was."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = chat_template
    return tokenizer


def rendered(tokenizer, system: str | None, texts: list[str], **options) -> str:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    opening = [] if system is None else [{"role": "system", "content": system}]
    return tokenizer.apply_chat_template(opening + turns, tokenize=False, **options)


def written(template: Template, tokenizer, system: str | None, texts: list[str], answered: bool = True) -> str:
    turns = [Turn(("human", "gpt")[i % 2], text) for i, text in enumerate(texts)]
    opening = [] if system is None else [Turn("system", system)]
    return "".join(segment.text for segment in template.segments(opening + turns, answered))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_it_writes_what_the_tokenizer_writes(name):
    """All up to the last end token: what ChatML has behind it (a line break) stands before the next turn alone."""
    tokenizer = TOKENIZERS[name]()
    template = find_template(OF_TOKENIZER, tokenizer)
    bos = "" if name == "byte_level_bpe" else tokenizer.bos_token  # ours is put before all by SampleMaker

    @settings(max_examples=300, deadline=None)
    @given(conversations)
    def check(conversation):
        system, texts = conversation
        if len(texts) % 2:  # the last one is to be answered
            theirs = rendered(tokenizer, system, texts, add_generation_prompt=True)
            assert bos + written(template, tokenizer, system, texts) == theirs
        else:
            theirs = rendered(tokenizer, system, texts)
            assert bos + written(template, tokenizer, system, texts) == theirs.removesuffix("\n")
            asked = rendered(tokenizer, system, texts[:-1], add_generation_prompt=True)
            assert bos + written(template, tokenizer, system, texts, answered=False) == asked

    check()


@pytest.mark.parametrize(
    ("make", "end", "response"),
    [
        (byte_level_bpe, "<|im_end|>", "{response}"),
        (sentencepiece_llama, "</s>", " {response} "),
        (llama3, "<|eot_id|>", "{response}"),
    ],
)
def test_a_response_and_its_end(make, end, response):
    template = read_chat_template(make())
    assert (template.end, template.response, template.image) == (end, response, "\n")
    assert find_template(asdict(template)) == template, "as the weights keep it"


def test_what_a_template_writes_once_is_in_the_first_turn():
    """A default system text, as Qwen's; one of a record's own takes its place."""
    default = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}" + CHATML
    tokenizer = with_template(byte_level_bpe(), default)
    template = read_chat_template(tokenizer)
    for system in (None, "Be brief."):
        asked = rendered(tokenizer, system, ["Hi", "Ho", "Hu"], add_generation_prompt=True)
        assert written(template, tokenizer, system, ["Hi", "Ho", "Hu"]) == asked


@pytest.mark.parametrize("refusal", ["{{ raise_exception('no system') }}", ""])
def test_a_template_that_knows_no_system_has_it_before_the_first_turn(refusal):
    knows_none = "{% for message in messages %}{% if message['role'] == 'system' %}" + refusal + "{% else %}"
    rest = CHATML.removeprefix("{% for message in messages %}").replace("{% endfor %}", "{% endif %}{% endfor %}")
    template = read_chat_template(with_template(byte_level_bpe(), knows_none + rest))
    plain = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert written(template, None, None, ["Hi"]) == plain
    assert written(template, None, "Be brief.", ["Hi"]) == plain.replace("Hi", "Be brief.\nHi")


def test_a_response_ends_with_the_first_special_token_behind_it():
    """Also where one token's name begins with another's, and where two follow each other."""
    both = CHATML.replace("<|im_end|>\n", "{{ '</s>' if message['role'] == 'assistant' else '' }}<|im_end|>\n", 1)
    template = read_chat_template(with_template(byte_level_bpe(), both))
    assert template.end == "</s>" and template.human.startswith("<|im_end|>\n")
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert written(template, None, None, ["Hi", "Ho", "Hu"]) == f"{asked}Ho</s><|im_end|>\n" + asked.replace("Hi", "Hu")


def test_our_bos_stands_before_all_and_is_not_written_twice():
    assert "<|begin_of_text|>" not in "".join(asdict(read_chat_template(llama3())).values())
    with_llama3s = with_template(byte_level_bpe(), LLAMA3_CHAT)
    with_llama3s.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
    assert "<s>" not in "".join(asdict(read_chat_template(with_llama3s)).values())


ALL_TURNS = "{% for message in messages %}"
LAST_TWO = "{% for message in messages[-2:] %}"
COUNTED = ALL_TURNS + "{{ loop.index0 // 2 }}"


@pytest.mark.parametrize(
    ("chat_template", "complaint"),
    [
        (None, "has no chat_template: choose another"),
        (CHATML.replace(ALL_TURNS, LAST_TWO), "leaves out turns, or writes them twice"),
        (CHATML.replace(ALL_TURNS, ALL_TURNS + "{{ message['content'] }}"), "leaves out turns, or writes them twice"),
        (CHATML.replace("<|im_end|>", "###"), "ends a response with no special token"),
        (CHATML.replace("<|im_end|>", "."), "ends a response with no special token"),
        (CHATML.replace(ALL_TURNS, COUNTED), "writes a later turn otherwise than the first"),
        (ALL_TURNS + "{{ raise_exception('I will not') }}{% endfor %}", "fails: I will not"),
        (ALL_TURNS + "{% endif %}", "fails"),
    ],
)
def test_what_cannot_be_read_is_refused(chat_template, complaint):
    with pytest.raises(ConfigError) as error:
        find_template(OF_TOKENIZER, with_template(byte_level_bpe(), chat_template))
    assert str(error.value).startswith("template=tokenizer: ") and complaint in str(error.value)
