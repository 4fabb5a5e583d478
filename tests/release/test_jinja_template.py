"""The chat template that is exported writes what the run's template writes, and a tokenizer makes the same ids of it."""

from __future__ import annotations

import copy

import pytest
from tokenizers import pre_tokenizers

from tests.support.small_tokenizers import TOKENIZERS, sentencepiece_llama
from visllama.data.samples import SampleMaker
from visllama.images.transform import ImageTransform
from visllama.release.jinja_template import ImageMark, write_jinja
from visllama.release.tokenizer_files import add_image_tokens
from visllama.text.encode import TextEncoder
from visllama.text.template import Template, Turn
from visllama.text.templates import TEMPLATES
from visllama.text.tokens import BOI_ID, EOI_ID, PLACEHOLDER_ID

IMAGE = {"type": "image"}
MARK = ImageMark("[boi]", "<image>", "[eoi]")


def said(role: str, *parts) -> dict:
    return {"role": role, "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


CASES = {
    "caption": ([said("user", IMAGE)], [Turn("gpt", "", 1)]),
    "question": ([said("user", IMAGE, "What is it?")], [Turn("human", "What is it?", 1)]),
    "text alone": ([{"role": "user", "content": "Say it: 'a \"b\" \\n'"}], [Turn("human", "Say it: 'a \"b\" \\n'")]),
    "two images": ([said("user", IMAGE, IMAGE, "Which?")], [Turn("human", "Which?", 2)]),
    "image inside": (
        [said("user", "Is", IMAGE, "like that?")],
        [Turn("human", "Is<image>like that?", has_marks=True)],
    ),
    "system": (
        [{"role": "system", "content": "Be brief."}, said("user", IMAGE, "What?")],
        [Turn("system", "Be brief."), Turn("human", "What?", 1)],
    ),
    "two turns": (
        [said("user", IMAGE, "What?"), said("assistant", "A café."), said("user", "Sure?")],
        [Turn("human", "What?", 1), Turn("gpt", "A café."), Turn("human", "Sure?")],
    ),
    "caption, then a question": (
        [said("user", IMAGE), said("assistant", "A red cup."), said("user", "Sure?")],
        [Turn("gpt", "A red cup.", 1), Turn("human", "Sure?")],
    ),
    "an image later": (
        [said("user", "Hello"), said("assistant", ""), said("user", IMAGE, "What?")],
        [Turn("human", "Hello"), Turn("gpt", ""), Turn("human", "What?", 1)],
    ),
}
OWN = Template(human="{bos}Q{images}: {human}\nA:", with_system="{system}|{images}{human}{eos}", image=" - ")


def starting_once():
    """Make a tokenizer as LLaMA's is since transformers 5: a space is written at the start of a text alone."""
    tokenizer = copy.deepcopy(sentencepiece_llama())
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    return tokenizer


ALL_TOKENIZERS = {**TOKENIZERS, "starting_once": starting_once}


@pytest.mark.parametrize("name", ALL_TOKENIZERS)
@pytest.mark.parametrize("template", [*TEMPLATES, "own"])
def test_the_same_ids_as_the_run(template, name):
    written = OWN if template == "own" else TEMPLATES[template]
    trained, exported = (copy.deepcopy(ALL_TOKENIZERS[name]()) for _ in range(2))
    trained.pad_token = exported.pad_token = trained.eos_token
    size = max(trained.get_vocab().values()) + 8  # more embeddings than tokens
    mark, _ = add_image_tokens(exported, size)
    maker = SampleMaker(trained, ImageTransform(8, (0.5,) * 3, (0.5,) * 3), 3, 256, "", written)
    exported.chat_template = write_jinja(written, "", TextEncoder(trained), mark)
    ids_of = {BOI_ID: size, EOI_ID: size + 1, PLACEHOLDER_ID: size + 2}

    for case, (messages, turns) in CASES.items():
        rendered = exported.apply_chat_template(messages, tokenize=False).replace(mark.image, mark.image * 3)
        found = exported(rendered, add_special_tokens=False)["input_ids"]
        expected, _ = maker.tokenise(written.segments(turns, answered=False))
        assert found == [ids_of.get(i, i) for i in expected], (case, rendered)


def test_the_text_is_that_of_the_template():
    tokenizer = TOKENIZERS["byte_level_bpe"]()
    jinja = write_jinja(TEMPLATES["vicuna"], "", TextEncoder(tokenizer), MARK)
    messages = [said("user", IMAGE, "What?"), said("assistant", "A cup."), said("user", "Sure?")]
    assert tokenizer.apply_chat_template(messages, chat_template=jinja, tokenize=False) == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: [boi]<image>[eoi]\nWhat? ASSISTANT: A cup.</s>"
        "USER: Sure? ASSISTANT:"
    )


def test_a_caption_is_asked_for_in_the_runs_words():
    tokenizer = TOKENIZERS["byte_level_bpe"]()
    jinja = write_jinja(TEMPLATES["plain"], 'Describe "it".', TextEncoder(tokenizer), MARK)
    rendered = tokenizer.apply_chat_template([said("user", IMAGE)], chat_template=jinja, tokenize=False)
    assert rendered == '<s>[boi]<image>[eoi]Describe "it".'


def test_a_template_is_text_and_never_code():
    """Whoever wrote the weights' description wrote the template: what it holds stays a string of Jinja."""
    tokenizer = TOKENIZERS["byte_level_bpe"]()
    evil = Template(human='" ~ (1 + 1) ~ "{{ 7 * 7 }}{% set x = 1 %}\\\n\'{human}', with_system="{system}{human}")
    jinja = write_jinja(evil, "", TextEncoder(tokenizer), MARK)
    rendered = tokenizer.apply_chat_template([said("user", "hi")], chat_template=jinja, tokenize=False)
    assert rendered == '<s>" ~ (1 + 1) ~ "{{ 7 * 7 }}{% set x = 1 %}\\\n\'hi'


@pytest.mark.parametrize("name", ALL_TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_without_a_mark_texts_are_written_as_by_the_run(template, name):
    """The language model alone: images are vectors that the caller puts in, and all else is as in training."""
    tokenizer = copy.deepcopy(ALL_TOKENIZERS[name]())
    tokenizer.pad_token = tokenizer.eos_token
    maker = SampleMaker(tokenizer, ImageTransform(8, (0.5,) * 3, (0.5,) * 3), 3, 256, "", TEMPLATES[template])
    exported = copy.deepcopy(ALL_TOKENIZERS[name]())
    exported.chat_template = write_jinja(TEMPLATES[template], "", TextEncoder(tokenizer), mark=None)
    messages = [said("user", "What?"), said("assistant", "A cup."), said("user", "Sure?")]
    turns = [Turn("human", "What?"), Turn("gpt", "A cup."), Turn("human", "Sure?")]
    rendered = exported.apply_chat_template(messages, tokenize=False)
    expected, _ = maker.tokenise(TEMPLATES[template].segments(turns, answered=False))
    assert exported(rendered, add_special_tokens=False)["input_ids"] == expected, rendered
