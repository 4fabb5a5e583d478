"""What one Sample is, token by token: the mistakes of the published layout (B1-B13 of the peers' note) cannot happen."""

from __future__ import annotations

import copy

import pytest

from tests.support.tiny import maker_of
from visllama.data.samples import SampleMaker
from visllama.text.template import Segment
from visllama.text.tokens import BOI_ID, EOI_ID, IGNORE_INDEX, PLACEHOLDER_ID, token_names

PROMPT, CAPTION = "the picture shows", "a small red ring"


@pytest.fixture(scope="module")
def model():
    from tests.support.tiny import tiny_parts
    from visllama.model.weights import build_model

    return build_model(tiny_parts(), ("connector", "markers"))


def sample_of(model, records, caption=CAPTION, **options):
    return maker_of(model, **options)(records[0] | {"captions": [caption]})


def test_the_whole_table(model, records):
    """Tokens, segments and labels side by side, printed (see them with -s) and asserted row by row."""
    sample = sample_of(model, records, prompt=PROMPT)
    tokenizer = model.tokenizer
    prompt = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    response = tokenizer(f" {CAPTION}", add_special_tokens=False)["input_ids"]
    ids = [tokenizer.bos_token_id, BOI_ID, *[PLACEHOLDER_ID] * 10, EOI_ID, *prompt, *response, tokenizer.eos_token_id]
    segments = ["bos", "boi", *["image"] * 10, "eoi", *["prompt"] * len(prompt), *["response"] * len(response), "eos"]
    labels = [i if segment in ("response", "eos") else IGNORE_INDEX for i, segment in zip(ids, segments, strict=True)]
    names = token_names(sample.input_ids, tokenizer)
    for row in zip(names, segments, sample.labels, strict=True):
        print("{:>12}  {:10} {:>6}".format(*row))
    assert sample.input_ids == ids
    assert sample.labels == labels
    assert names[:2] == ["<s>", "[boi]"] and names[12] == "[eoi]" and names[-1] == "</s>"
    # B1, B2, B3: nothing of image, markers, prompt or padding is learned; [boi] stands where it belongs.
    assert sample.labels[: 13 + len(prompt)] == [IGNORE_INDEX] * (13 + len(prompt))
    # B5: the end is learned. B12: a marker never is.
    assert sample.labels[-1] == tokenizer.eos_token_id
    assert not {BOI_ID, EOI_ID, PLACEHOLDER_ID} & set(sample.labels)
    # B4: only -100 is ignored; id 0 is an ordinary id.
    assert IGNORE_INDEX == -100
    assert sample.num_targets == len(response) + 1


def test_no_prompt(model, records):
    sample = sample_of(model, records)
    text = [i for i in sample.labels if i != IGNORE_INDEX]
    assert model.tokenizer.decode(text) == f"{CAPTION}</s>"
    assert sample.labels[:13] == [IGNORE_INDEX] * 13


def test_a_long_response_is_cut_but_still_ends(model, records):
    sample = sample_of(model, records, caption=" ".join(["a ring and"] * 200), max_text_tokens=20)
    assert len(sample.input_ids) == 13 + 20, "the image span is not counted"
    assert sample.labels[-1] == sample.input_ids[-1] == model.tokenizer.eos_token_id


def test_a_prompt_that_leaves_no_room_teaches_nothing(model, records):
    sample = sample_of(model, records, prompt=PROMPT * 9, max_text_tokens=5)
    assert sample.num_targets == 0 and len(sample.input_ids) == 13 + 5


def test_marker_and_special_strings_in_a_caption_are_plain_text(model, records):
    sample = sample_of(model, records, caption="[boi] <s> </s> <pad> [eoi]")
    text = sample.input_ids[13:]
    specials = {model.tokenizer.bos_token_id, model.tokenizer.pad_token_id, model.tokenizer.eos_token_id}
    assert min(text) >= 0 and not specials & set(text[:-1])
    assert model.tokenizer.decode(text[:-1]) == "[boi] <s> </s> <pad> [eoi]"


def test_empty_caption_teaches_to_stop(model, records):
    assert [i for i in sample_of(model, records, caption="").labels if i != IGNORE_INDEX] == [
        model.tokenizer.eos_token_id
    ]


def test_a_sample_to_be_answered_ends_with_the_prompt(model, records):
    sample = maker_of(model, prompt=PROMPT)(records[0], answered=False)
    assert sample.num_targets == 0
    assert model.tokenizer.decode(sample.input_ids[13:]) == PROMPT


def test_segments_are_tokenised_by_themselves(model, records):
    """Where a tokenizer would join prompt and response into one token, the border still stands."""
    segments = [Segment("a pic"), Segment("ture", True), Segment("{eos}", True, "end")]
    ids, labels = maker_of(model).tokenise(segments)
    supervised = [i for i in labels if i != IGNORE_INDEX][:-1]
    assert model.tokenizer.decode(supervised) == "ture"
    assert ids[-1] == model.tokenizer.eos_token_id


TEXTS = ("", " ", "a red square", "</s> <s> [boi] x", "naïve 🙂", " leading", "two  spaces\n", "<unk><pad>")


def test_texts_are_tokenised_as_the_tokenizer_does(model):
    """By its backend directly; also where its file asks for truncation and padding."""
    maker = maker_of(model)
    tokenizer = copy.deepcopy(maker.tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    asked = SampleMaker(tokenizer, maker.transform, 10, 256, "")
    for text in TEXTS:
        expected = maker.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert asked.encoder.start(text) == maker.encoder.start(text) == expected, text


def test_a_tokenizer_without_a_backend_is_asked_itself(model):
    class Plain:
        bos_token, bos_token_id, eos_token, eos_token_id = "<s>", 1, "</s>", 2

        def __call__(self, text, add_special_tokens, split_special_tokens):
            assert (add_special_tokens, split_special_tokens) == (False, True)
            return {"input_ids": [len(word) for word in text.split()]}

    plain = SampleMaker(Plain(), maker_of(model).transform, 1, 256, "")
    assert plain.encoder.start("a red square") == plain.encoder.go_on("a red square") == [1, 3, 6]
    assert plain.tokenise([Segment("a red"), Segment(" square", True), Segment("{eos}", True, "end")]) == (
        [1, 1, 3, 6, 2],
        [IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 6, 2],
    )
