"""A record's text is captions, questions or a conversation, and is read as such."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from webdataset import TarWriter

from tests.support.tars import picture, whole
from visllama.data.record import check_record, read_text
from visllama.data.source import count_items
from visllama.errors import BadRecord
from visllama.images.decode import open_image


def test_text_beside_the_image_is_one_caption(tmp_path):
    with TarWriter(str(tmp_path / "a.tar")) as tar:
        tar.write(
            {
                "__key__": "sub/k",
                "png": picture(kind="PNG"),
                "txt": " a caption\n",
                "json": {"caption": "of img2dataset"},
            }
        )
    record = whole(str(tmp_path / "a.tar"))[0]
    assert record["captions"] == ["a caption"]


def test_records_of_other_kinds_say_what_they_hold(tmp_path):
    with TarWriter(str(tmp_path / "a.tar")) as tar:
        asked = [{"question": "what?", "answers": ["a", "b"], "id": 3}]
        tar.write({"__key__": "a", "jpg": picture(), "json": {"questions": asked}})
        talk = [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "the first"}]
        tar.write({"__key__": "b", "0.jpg": picture(1), "1.jpg": picture(200), "json": {"conversations": talk}})
    source = whole(str(tmp_path / "a.tar"))
    assert source.kinds == {"questions": 1, "conversations": 1} and count_items(source) == 2
    assert source[0]["questions"] == asked and source[1]["conversations"] == talk
    shades = [max(open_image(image).getpixel((3, 3))) for image in source[1]["images"]]
    assert shades[0] < 5 and shades[1] > 190, "in the order of their numbers"


def test_a_conversation_that_begins_with_gpt_is_read_from_its_first_question_on(tmp_path):
    """The shard may be another's; in it the turn still stands."""
    said = [("gpt", "Hello, <image>"), ("human", "<image> What?"), ("gpt", "A ring.")]
    turns = [{"from": speaker, "value": value} for speaker, value in said]
    system = {"from": "system", "value": "Be kind."}
    with TarWriter(str(tmp_path / "a.tar")) as tar:
        for key, talk in (("a", turns), ("b", [system, *turns]), ("c", turns[:1]), ("d", [turns[0], *turns])):
            tar.write({"__key__": key, "jpg": picture(), "json": {"conversations": talk}})
    source = whole(str(tmp_path / "a.tar"))
    assert source[0]["conversations"] == turns[1:] and source[1]["conversations"] == [system, *turns[1:]]
    assert len(source) == 2 and source.faults == {"text": 2}


PICTURE = Image.new("RGB", (8, 6))
GOOD = {"key": "a", "image": PICTURE, "captions": [" a dog "]}


def test_a_record_of_ones_own_is_taken_with_its_texts_as_a_shards_are():
    assert check_record(GOOD) == {"key": "a", "image": PICTURE, "captions": ["a dog"]}
    told = {"key": "b", "questions": [{"question": "why?", "answers": ["so"]}], "mine": 3}
    assert check_record(told) == told, "without an image, and with what only its source knows"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (["a dog"], "is a list: a record is a dict with key, image and captions"),
        ({"image": PICTURE, "captions": ["a"]}, "has key=None: a record has a text of its own as its key"),
        ({**GOOD, "key": 7}, "has key=7: a record has a text of its own as its key"),
        ({**GOOD, "captions": "a red circle"}, "'a': has no captions: they are a list, not str: captions: [text, ...]"),
        ({**GOOD, "captions": []}, "'a': has no captions as they should be: captions: [text, ...]"),
        ({**GOOD, "captions": [" "]}, "'a': has an empty caption"),
        ({"key": "a", "image": PICTURE}, "'a': has none of them: a record has one of captions, questions"),
        ({**GOOD, "questions": []}, "'a': has captions and questions: a record has one of"),
        ({**GOOD, "image": "a.jpg"}, "'a': its image is a str: it is a PIL image, or a file's bytes"),
        ({**GOOD, "image": None}, "'a': its image is a NoneType"),
        ({**GOOD, "images": [PICTURE]}, "'a': has image and images"),
        ({"key": "a", "images": PICTURE, "captions": ["a"]}, "'a': its images are a Image: they are a list"),
        ({"key": "a", "questions": [{"question": "why?", "answers": "so"}]}, "'a': has no questions as they should be"),
        ({**GOOD, "captions": ["half \ud83d"]}, "'a': cannot be read"),
        (
            {"key": "a", "image": PICTURE, "conversations": [{"from": "human", "value": "no mark"}, {"from": "gpt", "value": "x"}]},
            "'a': its conversation has 0 <image>, and the record 1 images",
        ),
    ],
)  # fmt: skip
def test_what_is_no_record_is_refused_by_its_key(record, message):
    with pytest.raises(BadRecord) as refused:
        check_record(record)
    assert message in refused.value.detail


@pytest.mark.parametrize(
    ("told", "kept"), [("near-domain", "near-domain"), (" ", None), (3, None), (["a"], None), ("\ud83d", None)]
)
def test_a_type_is_a_text(told, kept):
    """Numbers stay scores; half an emoji is no text that a file takes."""
    text = read_text({"json": json.dumps({"captions": ["a"], "type": told}).encode()}, 1)
    assert text.type == kept and text.scores == ({"type": 3} if told == 3 else {})
