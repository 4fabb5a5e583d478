"""Texts become ids as the tokenizer has it, wherever they stand, and what is said never yields a special token."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers

from tests.support.small_tokenizers import TOKENIZERS, byte_level_bpe, llama3, sentencepiece_llama
from visllama.text.encode import TextEncoder
from visllama.text.template import IMAGE_MARK, Segment

TEXTS = [
    "", " ", "  ", "\n", "\n\n", "a", " a", "a ", "two  spaces", "5", " 5", "\n  def f(x):\n\treturn x", "😀",
    " 😀🐶👩‍👩‍👧‍👦",
    "中文 Zürich €", "'s", "):\n\n a", "\r\n", "\x00", "e\u0301",
]  # fmt: skip


def non_legacy():
    """Make the form in which LLaMA-2 is often found: a space is written before the first text alone."""
    tokenizer = copy.deepcopy(sentencepiece_llama())
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


ALL = TOKENIZERS | {"non_legacy": non_legacy}


@pytest.fixture(params=ALL)
def tokenizer(request):
    return ALL[request.param]()


def pieces(encoder: TextEncoder, ids: list[int]) -> list[str]:
    return encoder.tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_starts_as_the_tokenizer_starts_it(tokenizer, text):
    assert TextEncoder(tokenizer).start(text) == tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_goes_on_is_what_stands_there(tokenizer, text):
    """Decoded behind a word, the space that begins it is its own: neither one more nor one less."""
    encoder = TextEncoder(tokenizer)
    ids = encoder.start("x") + encoder.go_on(text)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == f"x{text}"


@pytest.mark.parametrize("make", [sentencepiece_llama, non_legacy])
def test_sentencepieces_space_is_written_at_the_start_alone(make):
    encoder = TextEncoder(make())
    assert pieces(encoder, encoder.start("a")) == ["▁a"]
    assert pieces(encoder, encoder.go_on(" a")) == ["▁a"]
    assert pieces(encoder, encoder.go_on("a")) == ["a"]
    assert pieces(encoder, encoder.go_on("  a")) == ["▁", "▁a"]
    assert pieces(encoder, encoder.go_on("\n")) == ["<0x0A>"] and pieces(encoder, encoder.start("\n")) == [
        "▁",
        "<0x0A>",
    ]
    assert pieces(encoder, encoder.go_on(" 5")) == ["▁", "5"]
    assert encoder.go_on("") == []
    # The other form writes none before a text that begins with one.
    assert pieces(encoder, encoder.start(" a")) == (["▁a"] if make is non_legacy else ["▁", "▁a"])


@pytest.mark.parametrize("make", [byte_level_bpe, llama3])
@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_tokenizers_write_no_space(make, text):
    encoder = TextEncoder(make())
    assert encoder.go_on(text) == encoder.start(text)


def test_a_text_behind_a_special_token_is_as_the_tokenizer_has_it(tokenizer):
    encoder = TextEncoder(tokenizer)
    for text in ("USER: hello", " a", "5"):
        behind = encoder.start(text) if encoder.starts_after_special else encoder.go_on(text)
        assert tokenizer.encode(tokenizer.eos_token + text, add_special_tokens=False) == [
            tokenizer.eos_token_id,
            *behind,
        ]


def test_only_the_legacy_form_starts_anew_behind_a_special_token():
    assert [TextEncoder(make()).starts_after_special for make in ALL.values()] == [False, True, False, False]


WORDS = ["A", "red", "dog", "isn't", "12", "5", "x=3", "(no)", "😀", "Zürich", "naïve", "—", "USER:", "\n", "\t"]
words = st.lists(st.sampled_from(WORDS), min_size=1)


@pytest.mark.parametrize("name", ALL)
def test_parts_with_a_word_border_between_them_are_the_whole(name):
    encoder = TextEncoder(ALL[name]())

    @settings(max_examples=200, deadline=None)
    @given(words, st.sampled_from(["dog", "A", "é"]), words)
    def check(before, word, behind):
        first, second = " ".join([*before, word]), " ".join(["", "then", *behind])
        assert encoder.start(first + second) == encoder.start(first) + encoder.go_on(second)

    check()


@pytest.mark.parametrize("name", ALL)
def test_what_is_said_never_yields_a_special_token(name):
    encoder = TextEncoder(ALL[name]())
    specials = sorted(encoder.special_ids)
    parts = [*specials, *(token[:-1] for token in specials), *(token[1:] for token in specials), "a", " ", "\n"]

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.sampled_from(parts), max_size=6).map("".join))
    def check(text):
        for ids in (encoder.start(text), encoder.go_on(text)):
            assert not set(ids) & set(encoder.special_ids.values())
        assert encoder.tokenizer.decode(encoder.start("x") + encoder.go_on(text)) == f"x{text}"

    check()


def test_the_tokenizer_itself_still_knows_its_special_tokens(tokenizer):
    TextEncoder(tokenizer).start("a")
    assert tokenizer.encode(tokenizer.eos_token, add_special_tokens=False) == [tokenizer.eos_token_id]


def test_special_tokens_are_all_that_the_tokenizer_has(tokenizer):
    assert TextEncoder(tokenizer).special_ids == dict(
        zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    )


def test_the_end_token_is_eos_where_the_template_s_is_not_known():
    named = {"{eos}": "</s>", "<|im_end|>": "<|im_end|>", "<|eot_id|>": "</s>", "": "</s>", "a": "</s>"}
    encoder = TextEncoder(byte_level_bpe())
    assert {name: encoder.end_token(name) for name in named} == named
    assert TextEncoder(llama3()).end_token("<|eot_id|>") == "<|eot_id|>"
    assert TextEncoder(llama3()).end_token("{eos}") == "<|end_of_text|>"
    assert TextEncoder(sentencepiece_llama()).end_token("<|eot_id|>") == "</s>"


def test_pieces_are_texts_images_and_special_tokens(tokenizer):
    """Special tokens are meant in a template's words alone; a prompt's texts are joined, a response stands by itself."""
    eos = tokenizer.eos_token
    segments = [
        Segment("{eos}", kind="template"),
        Segment("", kind="template"),
        Segment(f"Q{eos}{{bos}} ", kind="template"),
        Segment(f"{eos}{{eos}}{IMAGE_MARK}"),
        Segment(IMAGE_MARK, kind="image"),
        Segment(" A:", kind="template"),
        Segment("", True),
        Segment(f" {eos}", True),
        Segment("<|no_such_token|>", True, "end"),
    ]
    assert list(TextEncoder(tokenizer).pieces(segments)) == [
        Segment(eos, False, "special"),
        Segment("Q"),
        Segment(eos, False, "special"),
        Segment(tokenizer.bos_token, False, "special"),
        Segment(f" {eos}{{eos}}{IMAGE_MARK}"),
        Segment(IMAGE_MARK, False, "image"),
        Segment(" A:"),
        Segment(f" {eos}", True),
        Segment(eos, True, "special"),
    ]


def test_the_longest_of_special_tokens_that_begin_alike_is_meant():
    tokenizer = copy.deepcopy(byte_level_bpe())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im|>", "<|im|><|im|>"]})
    found = TextEncoder(tokenizer).pieces([Segment("<|im|><|im|><|im|>", kind="template")])
    assert [piece.text for piece in found] == ["<|im|><|im|>", "<|im|>"]


def test_truncation_and_padding_that_a_file_asks_for_are_not_meant(tokenizer):
    asked = copy.deepcopy(tokenizer)
    asked.backend_tokenizer.enable_truncation(3)
    asked.backend_tokenizer.enable_padding(length=9)
    encoder = TextEncoder(asked)
    for text in ("a", "a red dog on the street"):
        assert encoder.start(text) == tokenizer.encode(text, add_special_tokens=False)
