"""What other programs are answered: what the pipeline itself says, or what is wrong with their request."""

from __future__ import annotations

import base64
import os
import threading
from pathlib import Path

import pytest
from PIL import Image

from tests.support.demo_server import as_base64, as_file, scene, stand_in
from visllama.text.template import Turn


def test_captions_are_those_of_the_pipeline(demo):
    for name in demo.models.names:
        pipeline = demo.models.choose(name).pipeline
        answer = demo.ask("POST", "/caption", {"image": as_base64(scene(1)), "weights": name})
        assert answer.json == {"caption": pipeline.caption(scene(1), max_new_tokens=12)}
    first = demo.ask("POST", "/caption", {"image": as_base64(scene(1))}).json
    assert first == demo.ask("POST", "/caption", {"image": as_base64(scene(1)), "weights": "patches"}).json


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP"])
def test_files_of_each_kind(demo, kind):
    content = base64.b64encode(as_file(scene(), kind)).decode()
    assert demo.ask("POST", "/caption", {"image": content}).status == 200


def test_settings_reach_the_model(demo):
    pipeline, image = demo.models.choose("pooled").pipeline, as_base64(scene())
    for settings, most in (
        ({"max_new_tokens": 3}, 3),
        ({"num_beams": 3}, 12),
        ({"num_beams": 2, "max_new_tokens": 5.0}, 5),
    ):
        answer = demo.ask("POST", "/caption", {"image": image, "weights": "pooled"} | settings)
        expected = pipeline.caption(scene(), num_beams=settings.get("num_beams"), max_new_tokens=most)
        assert answer.json["caption"] == expected
    texts = {demo.ask("POST", "/caption", {"image": image, "temperature": 3.0}).json["caption"] for _ in range(5)}
    assert len(texts) > 1, "sampled"


def test_a_chat_goes_on_from_what_was_said(demo):
    """The conversation is the one that a chat of the pipeline itself would have, where the answers are its own."""
    chat = demo.models.choose("pooled").pipeline.chat(system="be brief")
    first = chat.say("the picture shows", scene(), max_new_tokens=12)
    second = chat.say("and here", [scene(1), scene(2)], max_new_tokens=12)
    messages = [
        {"role": "system", "text": "be brief"},
        {"role": "user", "text": "the picture shows", "images": [as_base64(scene())]},
    ]
    asked = {"messages": messages, "weights": "pooled"}
    assert demo.ask("POST", "/chat", asked).json == {"answer": first}
    messages += [
        {"role": "assistant", "text": first},
        {"role": "user", "text": "and here", "images": [as_base64(scene(1)), as_base64(scene(2))]},
    ]
    assert demo.ask("POST", "/chat", asked).json == {"answer": second}
    assert Turn("gpt", second) in chat.turns


def test_health_names_the_weights(demo):
    assert demo.ask("GET", "/health").json == {"weights": ["patches", "pooled"]}


def _user(**more: object) -> dict:
    return {"role": "user", "text": "what?"} | more


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/caption", b"words", "the body is no JSON"),
        ("/caption", b"[" * 30_000, "the body is no JSON"),
        ("/caption", [], "has to be an object"),
        ("/caption", {}, "image: has to be there"),
        ("/caption", {"image": "a", "images": []}, "images: no such key"),
        ("/caption", {"image": 5}, "image: has to be the base64"),
        ("/caption", {"image": ["a"]}, "image: has to be the base64"),
        ("/caption", {"image": ""}, "is no picture"),
        ("/caption", {"image": "YWJj"}, "image is no picture that can be read"),
        ("/caption", {"image": "YWJj", "weights": "other"}, "weights: has to be one of patches, pooled"),
        ("/caption", {"image": "YWJj", "weights": ["patches"]}, "weights: has to be one of"),
        ("/caption", {"image": "YWJj", "num_beams": 0}, "num_beams: has to be a whole number from 1 to 8"),
        ("/caption", {"image": "YWJj", "num_beams": True}, "num_beams: has to be a whole number"),
        ("/caption", {"image": "YWJj", "num_beams": 2.5}, "num_beams: has to be a whole number"),
        ("/caption", {"image": "YWJj", "max_new_tokens": 10**9}, "max_new_tokens: has to be a whole number"),
        ("/caption", b'{"image": "YWJj", "max_new_tokens": 1e999}', "max_new_tokens: has to be a whole number"),
        ("/caption", b'{"image": "YWJj", "temperature": NaN}', "temperature: has to be a number"),
        ("/caption", {"image": "YWJj", "temperature": 0}, "temperature: has to be a number above 0"),
        ("/caption", {"image": "YWJj", "temperature": "1"}, "temperature: has to be a number"),
        ("/chat", {"messages": []}, "messages: has to be a list of at least one"),
        ("/chat", {"messages": "what?"}, "messages: has to be a list"),
        ("/chat", {"messages": ["what?"]}, r"messages[0]: has to be an object"),
        ("/chat", {"messages": [_user(image="a")]}, r"messages[0]: has to be an object"),
        ("/chat", {"messages": [_user(role="gpt")]}, r"messages[0].role: has to be one of system, user, assistant"),
        ("/chat", {"messages": [_user(role=["user"])]}, r"messages[0].role: has to be one of"),
        ("/chat", {"messages": [_user(text=5)]}, r"messages[0].text: has to be a text"),
        ("/chat", {"messages": [_user(images="a")]}, r"messages[0].images: has to be a list"),
        ("/chat", {"messages": [_user(images=["a"])]}, r"messages[0].images[0]: no base64"),
        ("/chat", {"messages": [_user(role="system", images=["YWJj"])]}, r"messages[0].images: only a message of the user"),
        ("/chat", {"messages": [_user(images=["YWJj"] * 9)]}, "at most 8 pictures"),
        ("/chat", {"messages": [_user(), _user()]}, "take turns"),
        ("/chat", {"messages": [_user(role="assistant")]}, "take turns"),
        ("/chat", {"messages": [_user(), _user(role="assistant")]}, "take turns"),
        ("/chat", {"messages": [_user(), _user(role="system")]}, "take turns"),
        ("/chat", {"messages": [_user(text="red ring " * 500)]}, "the language model has 512 positions"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(demo, path, body, says):
    answer = demo.ask("POST", path, body)
    assert answer.status == 400 and answer.json.keys() <= {"error"}
    assert says in answer.json["error"]


@pytest.mark.parametrize("address", ["{other}/a.png", "file:///etc/passwd", "/etc/passwd", "example_1.png", "data:,"])
def test_no_address_and_no_path_is_an_image(demo, address, monkeypatch):
    monkeypatch.chdir(demo.uploads.parent)
    with stand_in() as (other, asked):
        address = address.format(other=other)
        for path, body in (
            ("/caption", {"image": address}),
            ("/caption", {"image": base64.b64encode(address.encode()).decode()}),
            ("/chat", {"messages": [_user(images=[address])]}),
        ):
            assert demo.ask("POST", path, body).status == 400
        assert asked == []


def test_a_picture_of_60_megapixels_is_refused_by_its_header(demo):
    answer = demo.ask("POST", "/caption", {"image": as_base64(Image.new("L", (10_000, 6_000)))})
    assert answer.status == 400 and "image is too large: 10000x6000" in answer.json["error"]


def test_eight_clients_at_once_are_all_answered(demo):
    """Each with what it asked for, and not with what another did."""
    expected = {i: demo.models.choose().pipeline.caption(scene(i), max_new_tokens=12) for i in range(4)}
    answers: dict[int, list] = {}

    def ask(number: int) -> None:
        image = as_base64(scene(number % 4))
        answers[number] = [demo.ask("POST", "/caption", {"image": image}) for _ in range(3)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(set(expected.values())) > 1
    for number in range(8):
        assert [answer.json for answer in answers[number]] == [{"caption": expected[number % 4]}] * 3


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.proof
def test_five_hundred_captions_take_no_more_memory_than_fifty(demo):
    """The server's process is this one. Less than a tenth more: allocators keep some of what they were given."""
    image = base64.b64encode(as_file(Image.new("RGB", (2000, 1500), (9, 80, 200)), "JPEG")).decode()
    sizes = {}
    for number in range(1, 501):
        assert demo.ask("POST", "/caption", {"image": image}).status == 200
        if number in (50, 500):
            sizes[number] = _resident_bytes()
    print({number: f"{size / 2**20:.0f} MiB" for number, size in sizes.items()})
    assert sizes[500] < 1.1 * sizes[50]
