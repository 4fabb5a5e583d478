"""The small tokenizers behave as the real families do, and the Vicuna rules learn the answers and nothing else."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from tests.support.small_tokenizers import TOKENIZERS, byte_level_bpe, llama3, sentencepiece_llama
from tests.support.vicuna_rules import HAND_MADE, IGNORED, IMAGE_ID, image_ids, vicuna_labels, vicuna_text

TEXTS = [
    "hello",
    "A red ball lies on the street.",
    " begins with a space",
    "ends with one ",
    "two  spaces   three    four",
    "lines\nand\n\nmore\n",
    "\n  def f(x):\n\treturn x  # tab\n",
    "😀 🐶👩‍👩‍👧‍👦 中文 Zürich €",
    "1234567890 3.14",
    " ",
    "\n",
]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_as_it_was(name, text):
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids


@pytest.mark.parametrize("name", TOKENIZERS)
def test_one_is_made_once_and_survives_saving(name, tmp_path):
    tokenizer = TOKENIZERS[name]()
    assert TOKENIZERS[name]() is tokenizer
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_tokens_are_one_id_each(name):
    tokenizer = TOKENIZERS[name]()
    for token, i in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True):
        assert tokenizer.encode(token, add_special_tokens=False) == [i]


def test_families_differ_in_bos_unknown_and_padding():
    found = {name: (make()("a")["input_ids"][0] == make().bos_token_id) for name, make in TOKENIZERS.items()}
    assert found == {"byte_level_bpe": False, "sentencepiece_llama": True, "llama3": True}
    assert (byte_level_bpe().bos_token_id, byte_level_bpe().eos_token_id, byte_level_bpe().pad_token_id) == (1, 3, 0)
    assert (sentencepiece_llama().bos_token_id, sentencepiece_llama().eos_token_id) == (1, 2)
    assert sentencepiece_llama().unk_token_id == 0 and sentencepiece_llama().pad_token is None
    assert llama3().unk_token is None and llama3().pad_token is None and llama3().eos_token == "<|end_of_text|>"
    assert min(llama3().all_special_ids) == len(llama3()) - 5


def _pieces(text: str) -> list[str]:
    tokenizer = sentencepiece_llama()
    return tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))


def test_sentencepiece_writes_a_space_before_a_text_also_behind_special_tokens():
    assert "".join(_pieces("hello")) == "▁hello"
    assert _pieces(" hello") == ["▁", *_pieces("hello")]
    assert _pieces("</s>hello") == ["</s>", *_pieces("hello")]
    assert _pieces("the</s>the<s> the") == ["▁the", "</s>", "▁the", "<s>", "▁", "▁the"]
    assert _pieces("") == []


def test_sentencepiece_cuts_spaces_digits_and_newlines_as_llama_does():
    # With the real one "Hi   Hello" is ▁Hi ▁▁ ▁Hello, " " is ▁▁, and "\nWhat" is ▁ <0x0A> What.
    assert _pieces("the  the") == ["▁the", "▁", "▁the"]
    assert _pieces("the   the") == ["▁the", "▁▁", "▁the"]
    assert _pieces(" ") == ["▁▁"]
    assert _pieces("\nWhat") == ["▁", "<0x0A>", "What"]
    assert _pieces("a 12") == ["▁a", "▁", "1", "2"]
    assert _pieces("😀") == ["▁", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    assert {f"<0x{byte:02X}>" for byte in range(256)} <= sentencepiece_llama().get_vocab().keys()


def test_llama3_keeps_up_to_three_digits_together_and_signs_with_their_newlines():
    split = llama3().backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [piece for piece, _ in split("it's 12345 (x):\n\n a")] == [
        "it",
        "'s",
        "Ġ",
        "123",
        "45",
        "Ġ(",
        "x",
        "):ĊĊ",
        "Ġa",
    ]


def test_chat_templates_are_those_of_the_families():
    turns = [("system", "S"), ("user", "U1"), ("assistant", "A1"), ("user", "U2")]
    messages = [{"role": role, "content": content} for role, content in turns]
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    expected = {
        "byte_level_bpe": "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
        + "<|im_start|>assistant\n",
        "sentencepiece_llama": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU1 [/INST] A1 </s><s>[INST] U2 [/INST]",
        "llama3": "<|begin_of_text|>"
        + "".join(header.format(role) + f"{content}<|eot_id|>" for role, content in turns)
        + header.format("assistant"),
    }
    for name, text in expected.items():
        tokenizer = TOKENIZERS[name]()
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == text


def test_hand_made_conversations_are_many_and_differ():
    assert len(HAND_MADE) == 64
    assert len({str(conversation) for conversation in HAND_MADE}) == 64


def test_vicuna_rules_on_one_conversation():
    tokenizer = sentencepiece_llama()
    conversation = [{"from": "human", "value": "What is this? <image>"}, {"from": "gpt", "value": "A dog 5."}]
    ids, labels = vicuna_labels(conversation, tokenizer)
    image = ids.index(IMAGE_ID)
    assert ids[0] == 1 and ids.count(1) == 1 and ids.count(IMAGE_ID) == 1
    assert tokenizer.convert_ids_to_tokens(ids[image - 2 : image]) == [":", "▁"]
    assert tokenizer.convert_ids_to_tokens(ids[image + 1 : image + 4]) == ["▁", "<0x0A>", "What"]
    learned = [label for label in labels if label != IGNORED]
    assert tokenizer.convert_ids_to_tokens(learned) == ["▁A", "▁dog", "▁", "5", ".", "</s>"]
    assert ids[-len(learned) :] == learned


@pytest.mark.parametrize("number", range(len(HAND_MADE)))
def test_vicuna_rules_learn_each_answer_and_its_end(number):
    tokenizer, conversation = sentencepiece_llama(), HAND_MADE[number]
    ids, labels = vicuna_labels(conversation, tokenizer)
    assert len(ids) == len(labels) and all(label in (i, IGNORED) for i, label in zip(ids, labels, strict=True))
    learned = [label for label in labels if label != IGNORED]
    answers, answer = [], []
    for label in learned:
        if label == tokenizer.eos_token_id:
            answers.append(tokenizer.decode(answer))
            answer = []
        else:
            answer.append(label)
    assert not answer
    spoken = conversation[conversation[0]["from"] == "gpt" :]
    assert answers == [turn["value"] for turn in spoken if turn["from"] == "gpt"]


@pytest.mark.parametrize("answer", ["", "one</s>two", "I am ASSISTANT: who are you?"])
def test_vicuna_rules_learn_nothing_where_their_count_fails(answer):
    conversation = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": answer}]
    assert set(vicuna_labels(conversation, sentencepiece_llama())[1]) == {IGNORED}


def test_text_alone_is_tokenised_as_a_whole():
    text, tokenizer = vicuna_text(HAND_MADE[22]), sentencepiece_llama()
    assert image_ids(text, tokenizer) == tokenizer(text)["input_ids"]
