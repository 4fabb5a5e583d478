"""A conversation with its cache is the conversation without: the same ids as in training, the same answers, less work."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby, takewhile
from types import SimpleNamespace

import pytest
import torch

from tests.support.families import LANGUAGE_MODELS, save_language_model
from tests.support.small_tokenizers import TOKENIZERS
from tests.support.tiny import TEXT, collator_of, relative_difference, tiny_parts
from visllama.data.samples import Sample, SampleMaker
from visllama.errors import ConfigError
from visllama.inference.chat import Chat
from visllama.inference.pipeline import Pipeline
from visllama.model.weights import build_model
from visllama.text.template import Turn
from visllama.text.templates import TEMPLATES
from visllama.text.tokens import BOI_ID, IGNORE_INDEX

SAID = ["the picture shows", "there is a", "and here there is a", "how many rings?", "large"]
PICTURES = [1, 0, 2, 0, 0]
"""Images of each turn."""
NUM_TOKENS = [7, 40, 7, 7, 7]
"""Most tokens of each answer."""


@pytest.fixture
def pipeline(make_model):
    """In fp64: rounding is 1e-16 there, and no argmax turns on it."""
    return Pipeline(make_model(), TEXT)


def talk(chat: Chat, records) -> Iterator[str]:
    images = iter([record["image"] for record in records])
    for text, number, most in zip(SAID, PICTURES, NUM_TOKENS, strict=True):
        yield chat.say(text, [next(images) for _ in range(number)], max_new_tokens=most)


@contextmanager
def positions_read(model) -> Iterator[list[int]]:
    """Count the positions of each call of the language model."""
    counts = []

    def count(module, args, kwargs):
        embeds, ids = kwargs.get("inputs_embeds"), kwargs.get("input_ids")
        counts.append((ids if embeds is None else embeds).shape[1])

    hook = model.language_model.register_forward_pre_hook(count, with_kwargs=True)
    yield counts
    hook.remove()


def write_anew(pipeline: Pipeline, ids: list[int], records, cache=None, **decoding) -> list[int]:
    """Write on after a whole conversation, of which nothing was read before."""
    images = [record["image"] for record in records[: ids.count(BOI_ID)]]
    batch = collator_of(pipeline.model).generation_batch(
        [Sample("", ids, [], [pipeline.maker.transform(image) for image in images])]
    )
    settings = {"do_sample": False, "eos_token_id": pipeline.end_ids, "pad_token_id": 0} | decoding
    return pipeline.model.generate(**batch, cache=cache, **settings)[0].tolist()


def check_conversation(pipeline: Pipeline, records) -> tuple[Chat, list[list[int]]]:
    """Check each turn against the same with nothing kept, and that no position is computed twice; gives the answers."""
    chat, answers, openings, held = pipeline.chat(), [], [], 0
    said = talk(chat, records)
    for most in NUM_TOKENS:
        before = len(chat.input_ids)
        with positions_read(pipeline.model) as counts:
            next(said)
        prompt = chat.input_ids[: held + counts[0]]
        written = write_anew(pipeline, prompt, records, max_new_tokens=most)
        assert len(counts) == len(written) and counts[1:] == [1] * (len(written) - 1)
        kept = list(takewhile(lambda i: i not in pipeline.end_ids, written))
        assert chat.input_ids == [*prompt, *kept, pipeline.maker.end_id]
        # What was not read yet of the turn before is its last token and its end, or its end alone.
        assert before == 0 or 1 <= before - held <= 2
        held += sum(counts)
        answers.append(written)
        openings.append(prompt[before:])
    ids, labels = pipeline.maker.tokenise(pipeline.maker.template.segments(chat.turns))
    pairs = groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] == IGNORE_INDEX)
    assert openings == [[i for i, _ in group] for is_prompt, group in pairs if is_prompt]
    assert chat.input_ids.count(BOI_ID) == sum(PICTURES)
    check_cache(pipeline, chat, len(prompt), records)
    return chat, answers


def check_cache(pipeline: Pipeline, chat: Chat, length: int, records) -> None:
    """Check the keys and values of so many positions against those of one reading."""
    fresh = pipeline.model.new_cache()
    write_anew(pipeline, chat.input_ids[:length], records, fresh, max_new_tokens=1)
    for ours, anew in zip(chat._cache.layers, fresh.layers, strict=True):
        for a, b in ((ours.keys, anew.keys), (ours.values, anew.values)):
            if b.shape[2] == length:  # else a window, of which the last positions are kept
                # fp64 rounds at 1e-16, some hundred times a layer
                assert relative_difference(a[:, :, :length], b) < 1e-12


def test_cached_is_uncached(pipeline, records):
    """Five turns, images in the first and the third, with an answer that ends and some that are cut."""
    _, answers = check_conversation(pipeline, records)
    assert {written[-1] == pipeline.maker.end_id for written in answers} == {True, False}
    assert len({tuple(written) for written in answers}) == len(answers), "all the same would prove little"


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_cached_is_uncached_in_other_families(family, tmp_path, records):
    """Mistral's window is shorter than the conversation, Gemma scales its embeddings, Qwen has no BOS."""
    window = {"sliding_window": 20} if family == "mistral" else {}
    save_language_model(family, tmp_path, **window)
    parts = tiny_parts() | {"language_model": {"kind": "PretrainedLanguageModel", "arguments": {"path": str(tmp_path)}}}
    torch.manual_seed(0)
    model = build_model(parts, ("connector", "markers")).load_base_weights(torch.float64)
    model.connector.double()
    model.markers.data = model.markers.data.double()
    pipeline = Pipeline(model, replace(TEXT, template=TEMPLATES["vicuna"]))
    chat, answers = check_conversation(pipeline, records)
    assert len(chat.input_ids) > 40
    # Gemma's random weights say one thing whatever they read; there the cache alone tells.
    assert len({tuple(written) for written in answers}) > 2 or family == "gemma"


def test_the_first_answer_is_that_of_a_question_asked_by_itself(pipeline, records):
    image = records[0]["image"]
    for text in SAID:
        expected = pipeline.ask(image, text, max_new_tokens=9)
        assert pipeline.chat(image).say(text, max_new_tokens=9) == expected
        assert pipeline.chat().say(text, image, max_new_tokens=9) == expected


def test_turns_show_what_was_said(pipeline, records):
    image = records[0]["image"]
    chat = pipeline.chat(image, system="be brief")
    assert chat.turns == [Turn("system", "be brief")]
    answers = [chat.say("there is a", image, max_new_tokens=4), chat.say("and a", max_new_tokens=4)]
    first, second = Turn("human", "there is a", 2), Turn("human", "and a")
    assert chat.turns == [
        Turn("system", "be brief"), first, Turn("gpt", answers[0]), second, Turn("gpt", answers[1]),
    ]  # fmt: skip


def test_two_chats_do_not_disturb_each_other(pipeline, records):
    """Turn by turn in between each other, about other pictures in other words."""
    others = records[::-1]
    alone = [list(talk(pipeline.chat(system=s), seen)) for s, seen in ((None, records), ("the", others))]
    chats = [pipeline.chat(), pipeline.chat(system="the")]
    both = list(zip(talk(chats[0], records), talk(chats[1], others), strict=True))
    assert [list(answers) for answers in zip(*both, strict=True)] == alone and alone[0] != alone[1]


def test_beams_and_what_follows_them(pipeline, records):
    chat, image = pipeline.chat(), records[0]["image"]
    settings = {"num_beams": 3, "max_new_tokens": 6}
    chat.say("the picture shows", image, max_new_tokens=6)
    for text, decoding in (("there is a", settings), ("large", {"max_new_tokens": 6}), ("how", settings)):
        prompt = chat.input_ids + chat._opening(Turn("human", text))
        written = write_anew(pipeline, prompt, records, **decoding)
        chat.say(text, **decoding)
        assert chat.input_ids[len(prompt) : -1] == [i for i in written if i not in pipeline.end_ids]


class Interrupt(BaseException):
    pass


def test_what_is_interrupted_was_not_said(pipeline, records):
    """Three tokens into the second answer: the cache has read of it, and must not keep that."""
    expected = list(talk(pipeline.chat(), records))
    chat = pipeline.chat()
    said = talk(chat, records)
    answers, calls = [next(said)], []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 3:
            raise Interrupt

    before = list(chat.turns), list(chat.input_ids)
    hook = pipeline.model.language_model.register_forward_pre_hook(interrupt)
    with pytest.raises(Interrupt):
        chat.say("something else", records[5]["image"])
    hook.remove()
    assert (chat.turns, chat.input_ids) == before
    assert [*answers, *said] == expected


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_what_is_streamed_is_what_is_said(pipeline, records, settings):
    """Turn by turn the same texts and the same state, in which the next turn reads as little."""
    said, streamed = pipeline.chat(), pipeline.chat()
    grew = 0
    for number, text in enumerate(SAID):
        images = [record["image"] for record in records[: PICTURES[number]]]
        decoding = {"max_new_tokens": NUM_TOKENS[number]} | settings
        expected = said.say(text, images, **decoding)
        texts = list(streamed.stream(text, images, **decoding))
        assert texts[-1] == expected
        assert all(expected.startswith(part) for part in texts)
        assert texts == sorted(texts, key=len)
        grew += len(set(texts)) > 2
        assert (streamed.turns, streamed.input_ids) == (said.turns, said.input_ids)
        assert streamed._cache.get_seq_length() == said._cache.get_seq_length()
    assert (grew > 0) == (not settings)


def test_a_stream_that_is_left_was_not_said(pipeline, records):
    expected = list(talk(pipeline.chat(), records))
    chat = pipeline.chat()
    said = talk(chat, records)
    answers = [next(said)]
    before = list(chat.turns), list(chat.input_ids)
    left = chat.stream("something else", records[5]["image"], max_new_tokens=400)
    with positions_read(pipeline.model) as counts:
        next(left)
        left.close()
    assert len(counts) < 400, "generating goes on though nobody listens"
    assert (chat.turns, chat.input_ids) == before
    assert [*answers, *said] == expected
    assert not [thread for thread in threading.enumerate() if thread.name == "visllama-stream"]


def test_an_error_inside_a_stream_is_raised_and_nothing_was_said(pipeline, records):
    expected = list(talk(pipeline.chat(), records))
    chat, calls = pipeline.chat(), []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 3:
            raise Interrupt

    hook = pipeline.model.language_model.register_forward_pre_hook(interrupt)
    with pytest.raises(Interrupt):
        list(chat.stream("something else", records[5]["image"]))
    hook.remove()
    with pytest.raises(ConfigError, match=r"max_new_tokens=510 behind \d+ tokens"):
        list(chat.stream("there is a", max_new_tokens=510))
    assert (chat.turns, chat.input_ids) == ([], [])
    assert list(talk(chat, records)) == expected


def test_a_freed_cache_is_read_again(pipeline, records):
    expected = list(talk(pipeline.chat(), records))
    chat = pipeline.chat()
    answers = []
    for answer in talk(chat, records):
        answers.append(answer)
        chat.free_cache()
        assert chat._cache.get_seq_length() == 0
    assert answers == expected


def test_a_conversation_past_the_positions_is_refused_and_may_go_on(pipeline, records):
    chat, plain = pipeline.chat(records[0]["image"]), pipeline.chat(records[0]["image"])
    with pytest.raises(
        ConfigError, match=r"max_new_tokens=500 behind \d+ tokens: the language model has 512 positions"
    ):
        chat.say("there is a", max_new_tokens=500)
    assert chat.turns == []
    for text in ("there is a", "and a"):
        assert chat.say(text, max_new_tokens=5) == plain.say(text, max_new_tokens=5)
    words = "red ring " * 100  # about 200 tokens: there is room for it twice, and not three times
    assert [chat.say(words, max_new_tokens=5) for _ in range(2)] == [
        plain.say(words, max_new_tokens=5) for _ in range(2)
    ]
    with pytest.raises(ConfigError, match=r"max_new_tokens=5 behind \d+ tokens"):
        chat.say(words, max_new_tokens=5)
    assert chat.say("large", max_new_tokens=5) == plain.say("large", max_new_tokens=5)


class Scripted:
    """A pipeline that says what it is told to, token by token; its cache is a length."""

    def __init__(self, maker: SampleMaker, script: list[list[int]]) -> None:
        self.maker, self.script, self.seen = maker, iter(script), []
        self.end_ids = sorted({maker.end_id, maker.tokenizer.eos_token_id})
        self.model = SimpleNamespace(new_cache=self.new_cache)

    def new_cache(self) -> SimpleNamespace:
        cache = SimpleNamespace(length=0)
        cache.get_seq_length = lambda: cache.length
        return cache

    def read(self, images) -> list:
        return list(images or [])

    def write(self, samples, decoding, cache) -> list[list[int]]:
        written = next(self.script)
        self.seen.append((cache.length, samples[0].input_ids, len(samples[0].pixel_values)))
        cache.length += len(samples[0].input_ids) + len(written) - 1
        return [written]


def scripted_maker(name: str, template: str) -> SampleMaker:
    """Of three families' tokenizers, of two whose BOS is none or the end token, and of LLaMA's where behind a special token
    no space is added, as its newer files have it."""
    own = {"goes_on_after_special": "sentencepiece_llama"}.get(name, "byte_level_bpe")
    tokenizer = TOKENIZERS[name]() if name in TOKENIZERS else copy.deepcopy(TOKENIZERS[own]())
    if name in ("no_bos", "bos_is_eos"):
        tokenizer.bos_token = {"no_bos": None, "bos_is_eos": "</s>"}[name]
    maker = SampleMaker(tokenizer, lambda image: torch.zeros(3, 4, 4), 3, 10**6, "", TEMPLATES[template])
    maker.encoder.starts_after_special &= name != "goes_on_after_special"
    return maker


@pytest.mark.parametrize("tokenizer", [*TOKENIZERS, "no_bos", "bos_is_eos", "goes_on_after_special"])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("system", [None, "", "Be brief."])
@pytest.mark.parametrize("ends", [True, False], ids=["ended", "cut"])
def test_a_chat_reads_what_a_conversation_of_training_is(tokenizer, template, system, ends):
    """Token by token, when the answers are those of the record: by their end token, or cut before it."""
    maker = scripted_maker(tokenizer, template)
    answers = ["A red dog.", "12", "Yes, in the café.\nTwo!"]
    turns = [] if system is None else [Turn("system", system)]
    for number, (text, answer) in enumerate(zip(["What?", " Why <image> </s>?", "Sure?"], answers, strict=True)):
        turns += [Turn("human", text, num_images=(1, 0, 2)[number]), Turn("gpt", answer)]
    ids, labels = maker.tokenise(maker.template.segments(turns))
    runs = groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] == IGNORE_INDEX)
    script = [[i for i, _ in run] for is_prompt, run in runs if not is_prompt]
    pipeline = Scripted(maker, [written if ends else written[:-1] for written in script])
    chat = Chat(pipeline, system=system)
    for turn in turns:
        if turn.speaker == "human":
            chat.say(turn.text, ["image"] * turn.num_images)
    assert chat.input_ids == ids
    assert chat.turns == turns
    assert [shown for _, _, shown in pipeline.seen] == [1, 0, 2], "each image is seen once"


def test_another_end_is_written_as_the_templates():
    """Llama-3 may stop at its end of text; what it was trained to read there is the end of a turn."""
    maker = scripted_maker("llama3", "llama3_chat")
    text, eos = maker.encoder.start("A dog."), maker.tokenizer.eos_token_id
    assert eos != maker.end_id
    chat = Chat(Scripted(maker, [[*text, eos]]))
    assert chat.say("What?") == "A dog." and chat.input_ids[-len(text) - 1 :] == [*text, maker.end_id]


def test_what_is_written_behind_an_end_is_dropped_with_its_cache():
    """`eos_token_id` of one's own: the model's end is no end then, and all is read anew after it."""
    maker = scripted_maker("byte_level_bpe", "plain")
    text = maker.encoder.start("A dog.")
    pipeline = Scripted(maker, [[*text, maker.end_id, *text], text])
    chat = Chat(pipeline)
    assert chat.say("What?", ["image"], eos_token_id=-5) == "A dog."
    so_far = list(chat.input_ids)
    chat.say("Sure?")
    held, read, shown = pipeline.seen[-1]
    assert held == 0 and read[: len(so_far)] == so_far and shown == 1
