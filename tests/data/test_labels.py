"""The supervised part is exact: responses and their end tokens and nothing else, for each template and tokenizer."""

from __future__ import annotations

import copy
import functools
import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.made_sources import Records
from tests.support.small_tokenizers import TOKENIZERS, byte_level_bpe, sentencepiece_llama
from tests.support.vicuna_rules import HAND_MADE, IGNORED, IMAGE_ID, vicuna_labels
from visllama.data.datamodule import TrainingSamples
from visllama.data.order import Order
from visllama.data.samples import Sample, SampleMaker
from visllama.data.turns import turns_of
from visllama.text.template import IMAGE_MARK
from visllama.text.templates import OF_TOKENIZER, TEMPLATES, find_template
from visllama.text.tokens import BOI_ID, EOI_ID, IGNORE_INDEX, PLACEHOLDER_ID

K = 3
SPAN = [BOI_ID, *[PLACEHOLDER_ID] * K, EOI_ID]
NAMES = [*TEMPLATES, OF_TOKENIZER]
COMBINATIONS = list(itertools.product(NAMES, TOKENIZERS))
RESPONSES = {
    "plain": " {}", "question_answer": " {}", "original": " {}", "vicuna": " {}", "llama2_chat": " {} ", "alpaca": "{}", "llama3_chat": "{}",
    ("tokenizer", "byte_level_bpe"): "{}", ("tokenizer", "sentencepiece_llama"): " {} ", ("tokenizer", "llama3"): "{}",
}  # fmt: skip
"""How each template writes a response, here once more."""
ENDS = {
    ("llama3_chat", "llama3"): "<|eot_id|>",
    ("tokenizer", "llama3"): "<|eot_id|>",
    ("tokenizer", "byte_level_bpe"): "<|im_end|>",
}
"""What ends a response where it is not eos."""


def end_of(template: str, name: str) -> int:
    tokenizer = TOKENIZERS[name]()
    return tokenizer.convert_tokens_to_ids(ENDS.get((template, name), tokenizer.eos_token))


@functools.cache
def maker_of(template: str, name: str, max_text_tokens: int = 10**6, num_image_tokens: int = K) -> SampleMaker:
    tokenizer = TOKENIZERS[name]()
    sizes = num_image_tokens, max_text_tokens
    return SampleMaker(tokenizer, torch.tensor, *sizes, "", find_template(template, tokenizer))


# What is said: words, and all that could be taken for something else. Left out is "▁", which SentencePiece decodes as a
# space whatever it was.
LOOK_ALIKES = [
    "[boi]", "[eoi]", "[image]", "<unk>", "USER:", "ASSISTANT:", "### Response:", "[/INST]", "[INST]", "<<SYS>>",
    "<s>", "</s>", "<|eot_id|>", "<|im_end|>", "<|im_start|>", "<|end_header_id|>", "<|end_of_text|>", "<pad>",
    "{human}", "{eos}", "{bos}", "{response}",
]  # fmt: skip
WORDS = ["a", " dog", "Red ", "12", " ", "  ", "\n", "\n\n", "\t", "😀", "👩‍👩‍👧‍👦", "é", "中文", ".", "'s"]
letters = st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=3)
texts = st.lists(st.sampled_from(WORDS) | st.sampled_from(LOOK_ALIKES) | letters, max_size=5).map("".join)


@st.composite
def records(draw) -> dict:
    """Draw a conversation of 1 to 4 turns and its 0 to 3 images, whose marks stand anywhere in what humans say.

    The last one may be left unanswered, and gpt may open it.
    """
    rounds = draw(st.integers(1, 4))
    asked_in = draw(st.lists(st.integers(0, rounds - 1), max_size=3))  # for each image, which turn it stands in
    turns = []
    for i in range(rounds):
        human = IMAGE_MARK.join([draw(texts) for _ in range(asked_in.count(i) + 1)])
        answer = draw(texts) + draw(st.sampled_from(["", "", IMAGE_MARK]))  # plain text there
        turns += [("human", human), ("gpt", answer)]
    kind = draw(st.sampled_from(["as it is"] * 4 + ["unanswered", "gpt opens"]))
    turns = turns[:-1] if kind == "unanswered" else [("gpt", draw(texts)), *turns] if kind == "gpt opens" else turns
    turns = [("system", draw(texts)), *turns] if draw(st.booleans()) else turns
    return record_of(turns, len(asked_in))


class Numbered(Records):
    """A source whose images are the numbers that `torch.tensor` takes."""

    def read(self, index: int) -> dict:
        return self[index]


def record_of(turns: list[tuple[str, str]], num_images: int) -> dict:
    """Make a record, of whose images `torch.tensor` makes tensors that hold their number."""
    images = [[[[number]]] * 3 for number in range(num_images)]
    return {"key": "0", "conversations": [{"from": s, "value": text} for s, text in turns], "images": images}


def parts_of(ids: list[int], tokenizer) -> list:
    """Read ids back: texts, the ids of special tokens, and image spans as their marks.

    A text is decoded behind the token of "x", which is then taken off: SentencePiece's decoder drops the first space of
    what it is given, so alone " a" and "a" would be the same. The space that this tokenizer itself writes where a text
    starts (at the beginning, behind an image or a special token) is seen so, and is one that each test expects there.
    """
    anchor = tokenizer.encode("x", add_special_tokens=False)
    parts: list = []
    while ids:
        if ids[0] in tokenizer.all_special_ids:
            parts.append(ids[0])
            ids = ids[1:]
        elif ids[0] < 0:
            assert ids[: K + 2] == SPAN, "a span is whole"
            parts.append(IMAGE_MARK)
            ids = ids[K + 2 :]
        else:
            run = list(itertools.takewhile(lambda i: i >= 0 and i not in tokenizer.all_special_ids, ids))
            text = tokenizer.decode(anchor + run, clean_up_tokenization_spaces=False)
            assert text[0] == "x"
            parts.append(("text", text[1:]))
            ids = ids[len(run) :]
    return parts


def check_sample(record: dict, template: str, name: str) -> None:
    maker, tokenizer = maker_of(template, name), TOKENIZERS[name]()
    sample = maker(record)
    response = RESPONSES.get(template) or RESPONSES[template, name]
    end = end_of(template, name)

    # What is to be learned, from the record alone: a response that no words stand before is bare, and starts the text.
    spoken = [turn for turn in record["conversations"] if turn["from"] != "system"]
    has_system = any(turn["from"] == "system" and turn["value"] for turn in record["conversations"])
    expected, asked = [], IMAGE_MARK
    for number, (speaker, text) in enumerate(turn.values() for turn in spoken):
        if speaker == "gpt":
            is_bare = number == 0 or (template == "plain" and asked.endswith(IMAGE_MARK))
            written = text if is_bare or not text else response.format(text)
            written = f" {text}" if is_bare and text and name == "sentencepiece_llama" else written
            expected += [("text", written)] * bool(written) + [end]
        asked = text or (IMAGE_MARK if number or not has_system else "")
    learned = [(i, label) for i, label in zip(sample.input_ids, sample.labels, strict=True) if label != IGNORE_INDEX]
    assert all(i == label >= 0 for i, label in learned)
    runs = itertools.groupby(sample.labels, lambda label: label != IGNORE_INDEX)
    assert [part for is_learned, run in runs if is_learned for part in parts_of(list(run), tokenizer)] == expected
    assert sample.num_targets == len(learned)

    # Images: as many spans as pictures, each whole, in their order.
    assert sample.input_ids.count(BOI_ID) == sample.input_ids.count(EOI_ID) == len(record["images"])
    assert sample.input_ids.count(PLACEHOLDER_ID) == K * len(record["images"])
    assert [int(pixels[0, 0, 0]) for pixels in sample.pixel_values] == list(range(len(record["images"])))

    # All of it: the text that the template writes; special tokens are its own and nobody else's.
    assert parts_of_sample(sample, tokenizer) == parts_of_text(record, template, name)


def parts_of_sample(sample: Sample, tokenizer) -> list:
    """Read a sample back; texts that only the border between prompt and response parts are joined."""
    ids, labels = sample.input_ids, sample.labels
    assert ids[0] == tokenizer.bos_token_id and labels[0] == IGNORE_INDEX
    parts, place = [], 0
    for _, run in itertools.groupby(labels, lambda label: label != IGNORE_INDEX):
        length = len(list(run))
        parts += parts_of(ids[place : place + length], tokenizer)
        place += length
    return joined(parts)


def joined(parts: list) -> list:
    made: list = []
    for part in parts:
        if isinstance(part, tuple) and made and isinstance(made[-1], tuple):
            made[-1] = ("text", made[-1][1] + part[1])
        elif part != ("text", ""):
            made.append(part)
    return made


def parts_of_text(record: dict, template: str, name: str) -> list:
    """Return the same from the template's text (whose letters tests/text/test_templates.py holds)."""
    tokenizer = TOKENIZERS[name]()
    specials = re.compile("(" + "|".join(map(re.escape, tokenizer.all_special_tokens)) + ")")
    parts: list = [tokenizer.bos_token_id]
    turns = turns_of(record, 0, "", "", len(record["images"]))
    for text, _, kind in find_template(template, tokenizer).segments(turns):
        if kind == "image":
            parts.append(IMAGE_MARK)
        elif kind == "end":
            parts.append(end_of(template, name))
        elif kind == "template":
            filled = text.replace("{bos}", tokenizer.bos_token).replace("{eos}", tokenizer.eos_token)
            for number, piece in enumerate(specials.split(filled)):
                parts.append(tokenizer.convert_tokens_to_ids(piece) if number % 2 else ("text", piece))
        else:
            parts.append(("text", text))
    parts = joined(parts)
    if name == "sentencepiece_llama":  # its space where a text starts
        parts = [("text", f" {part[1]}") if isinstance(part, tuple) else part for part in parts]
    return parts


@pytest.mark.parametrize("template", NAMES)
@settings(max_examples=500, deadline=None)
@given(record=records())
def test_responses_and_their_ends_are_learned_and_nothing_else(template, record):
    for name in TOKENIZERS:
        check_sample(record, template, name)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_border_within_a_word_stands(name):
    """Where the whole would have tokens of both sides, prompt and response have their own."""
    tokenizer, text = TOKENIZERS[name](), "A green bicycle is  behind\n    return width 12."
    template = find_template({"human": "{human}", "response": "{response}"})
    maker = SampleMaker(tokenizer, torch.tensor, K, 99, "", template)
    whole, joins = tokenizer.encode(text, add_special_tokens=False), 0
    for i in range(1, len(text)):
        sample = maker(record_of([("human", text[:i]), ("gpt", text[i:])], 0))
        response = [label for label in sample.labels if label != IGNORE_INDEX]
        prompt = sample.input_ids[1 : -len(response)]
        assert prompt == tokenizer.encode(text[:i], add_special_tokens=False)
        assert parts_of(response, tokenizer) == [("text", text[i:]), tokenizer.eos_token_id]
        joins += sample.input_ids[1:-1] != whole
    assert joins > 10


@pytest.mark.parametrize(("template", "name"), COMBINATIONS)
def test_what_is_to_be_generated_is_not_read(template, name):
    """Unanswered, a sample is all before its last response, whatever that is."""
    record = record_of([("human", "a <image>"), ("gpt", "b 😀"), ("human", "c"), ("gpt", "d")], 1)
    whole, asked = (maker_of(template, name)(record, answered=answered) for answered in (True, False))
    assert asked.input_ids == whole.input_ids[: len(asked.input_ids)]
    assert asked.labels == whole.labels[: len(asked.labels)] and asked.labels[-1] == IGNORE_INDEX
    assert all(label != IGNORE_INDEX for label in whole.labels[len(asked.labels) :])
    record["conversations"][-1] = {"from": "gpt", "value": ""}
    assert maker_of(template, name)(record, answered=False).input_ids == asked.input_ids


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(talk=st.lists(st.sampled_from(["Hello", "A red dog", "It isn't 12.", "é 😀", "x = 3"]), min_size=2, max_size=6))
def test_a_chat_templates_ids_are_the_tokenizers_own(name, talk):
    """Where words stand at the borders, tokenising part by part is tokenising the whole."""
    tokenizer, talk = TOKENIZERS[name](), talk[: len(talk) // 2 * 2]
    record = record_of([(("human", "gpt")[i % 2], text) for i, text in enumerate(talk)], 0)
    chat = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(talk)]
    ours = maker_of(OF_TOKENIZER, name)(record).input_ids
    theirs = tokenizer.encode(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False)
    if name == "byte_level_bpe":  # ChatML has no BOS, and a line break behind the last end token
        theirs = [tokenizer.bos_token_id, *theirs[:-1]]
    assert ours == theirs


@pytest.mark.parametrize("template", NAMES)
@settings(max_examples=100, deadline=None)
@given(record=records(), most=st.integers(1, 40), is_behind_prompt=st.booleans())
def test_what_is_cut_keeps_whole_images_and_its_end(template, record, most, is_behind_prompt):
    """Cut anywhere, or (a system text is longer than that) shortly before the first response or behind it."""
    for name in TOKENIZERS:
        check_cut(record, template, name, most, is_behind_prompt)


def check_cut(record: dict, template: str, name: str, most: int, is_behind_prompt: bool) -> None:
    whole = maker_of(template, name)(record)
    end = end_of(template, name)
    first = next((i for i, label in enumerate(whole.labels) if label != IGNORE_INDEX), len(whole.labels))
    prompt_length = sum(i >= 0 for i in whole.input_ids[1:first])
    most = max(1, prompt_length + most - 3) if is_behind_prompt else most
    is_left = first < len(whole.labels) and most >= prompt_length + (1 if whole.labels[first] == end else 2)
    cut = maker_of(template, name, most)(record)
    ids, labels, num_left = cut.input_ids, cut.labels, len(cut.input_ids)

    spans = [ids[i : i + K + 2] for i in range(num_left) if ids[i] == BOI_ID]
    assert all(span == SPAN for span in spans) and sum(i < 0 for i in ids) == len(spans) * (K + 2)
    assert [int(pixels[0, 0, 0]) for pixels in cut.pixel_values] == list(range(len(spans)))

    num_texts = sum(i >= 0 for i in ids) - 1  # BOS is not counted
    assert num_texts <= most
    if sum(i >= 0 for i in whole.input_ids) - 1 <= most:
        assert (ids, labels) == (whole.input_ids, whole.labels)
    elif (ids, labels) == (whole.input_ids[:num_left], whole.labels[:num_left]):
        assert labels[-1] in (IGNORE_INDEX, end), "a response that is there has its end"
        begins = whole.labels[num_left] not in (IGNORE_INDEX, end)
        assert num_texts == most or (begins and num_texts == most - 1), "one token of a response is not worth its end"
    else:
        last = num_left - 1
        assert (ids[last], labels[last]) == (end, end) and num_texts == most
        assert (ids[:last], labels[:last]) == (whole.input_ids[:last], whole.labels[:last])
        assert IGNORE_INDEX not in (labels[last - 1], whole.labels[last]), "a token before it, and it was to go on"
        assert labels[last - 1] != end

    assert (cut.num_targets > 0) == is_left
    order = Order({"talks": [1]}, {"talks": 1.0}, 1, 0)
    sample = TrainingSamples({"talks": Numbered([record])}, {"talks": maker_of(template, name, most)}, order)[0]
    assert (sample.input_ids, sample.labels, sample.key) == (ids, labels, "talks/0#0")
    assert (sample.fault and sample.fault.reason) == (None if is_left else "no_target")


def test_a_response_is_cut_at_every_length():
    """By hand: the response is ▁A ▁dog . and its end, behind a prompt of two tokens and an image between them."""
    record = record_of([("human", "A<image>red"), ("gpt", "A dog.")], 1)
    seen = []
    for most in range(1, 9):
        sample = maker_of("plain", "sentencepiece_llama", most)(record)
        names = sentencepiece_llama().convert_ids_to_tokens([i for i in sample.input_ids[1:] if i >= 0])
        seen.append((" ".join(names), sample.num_targets, len(sample.pixel_values)))
    assert seen == [
        ("▁A", 0, 1),
        *[("▁A ▁red", 0, 1)] * 2,
        ("▁A ▁red ▁A </s>", 2, 1),
        ("▁A ▁red ▁A ▁dog </s>", 3, 1),
        *[("▁A ▁red ▁A ▁dog . </s>", 4, 1)] * 3,
    ]


def test_a_tokenizer_without_bos_has_none_written():
    """Nor where a template says `{bos}`; and what stands first has nothing before it to be predicted from."""
    tokenizer = copy.deepcopy(byte_level_bpe())
    tokenizer.bos_token = None
    maker = SampleMaker(tokenizer, torch.tensor, K, 99, "", TEMPLATES["llama2_chat"])
    text = "[INST] a [/INST] a </s>" * 2
    assert maker(record_of([("human", "a"), ("gpt", "a")] * 2, 0)).input_ids == tokenizer.encode(
        text, add_special_tokens=False
    )
    sample = maker({"key": "0", "captions": ["a"]})
    assert sample.input_ids == sample.labels == tokenizer.encode("a</s>", add_special_tokens=False)
    assert sample.num_targets == 1


@pytest.mark.parametrize("number", range(len(HAND_MADE)))
def test_vicunas_ids_and_labels_are_llavas(number):
    """Token for token. LLaVA moves an image to the front of its turn first; ours stand where the mark is."""
    said = HAND_MADE[number][HAND_MADE[number][0]["from"] != "human" :]  # nor does it read a turn of gpt that opens
    turns = []
    for speaker, text in (turn.values() for turn in said):
        rest = text.replace(IMAGE_MARK, "").strip()
        turns.append((speaker, text if IMAGE_MARK not in text else f"{IMAGE_MARK}\n{rest}".strip()))
    num_images = sum(IMAGE_MARK in text for _, text in turns)
    sample = maker_of("vicuna", "sentencepiece_llama", num_image_tokens=1)(record_of(turns, num_images))
    ours = [
        (IMAGE_ID if i == PLACEHOLDER_ID else i, label)
        for i, label in zip(sample.input_ids, sample.labels, strict=True)
        if i not in (BOI_ID, EOI_ID)
    ]
    assert ours == list(zip(*vicuna_labels(HAND_MADE[number], sentencepiece_llama()), strict=True))
    assert len(sample.pixel_values) == num_images and IGNORED == IGNORE_INDEX
