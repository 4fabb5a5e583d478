"""Answer the demo's JSON API: captions and answers for other programs, at the page's own address.

    POST /caption  {"image": BASE64, "weights"?, "num_beams"?, "temperature"?, "max_new_tokens"?}  ->  {"caption": TEXT}
    POST /chat     {"messages": [{"role": ROLE, "text": TEXT, "images"?: [BASE64]}], ...}          ->  {"answer": TEXT}
    GET  /health                                                                      ->  {"weights": [NAME]}

An image is the base64 of a JPEG, PNG, WebP, GIF or BMP file; paths and addresses are refused. ROLE is "user",
"assistant" or, for the first message alone, "system". User and assistant alternate, and the last message is the user's.
The server remembers nothing between two requests, so a client sends the assistant's earlier messages too. `weights` is
a name of /health; without it the first one answers. Without the other keys the server's own decoding holds; with
`temperature` a text is sampled.

A wrong request is answered by 400 and {"error": MESSAGE}; one that is too large by 413, one too many a minute by 429,
and one that finds too many others waiting by 503.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from visllama.errors import ConfigError
from visllama.inference.reply import reply
from visllama.release.demo.pictures import read_picture
from visllama.release.demo.served import MOST_PICTURES, Busy, Served, Shelf
from visllama.text.template import Turn

_SETTINGS = ("num_beams", "temperature", "max_new_tokens")
"""The keys of a request that say how a text is generated."""
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}
"""visllama's name of the speaker of each role."""
_log = logging.getLogger("visllama")


def add_api(app: FastAPI, models: Shelf, max_bytes: int) -> None:
    """Add the routes `GET /health`, `POST /caption` and `POST /chat` to an application.

    Args:
        app: The application, which is changed.
        models: The models that answer; a request chooses one by its name.
        max_bytes: The largest size of a picture's file, in bytes.
    """

    def write_caption(body: object) -> dict[str, str]:
        return caption_of(body, models, max_bytes)

    def write_answer(body: object) -> dict[str, str]:
        return answer_to(body, models, max_bytes)

    async def health(request: Request) -> Response:
        return JSONResponse({"weights": models.names})

    async def caption(request: Request) -> Response:
        return await _answer(request, write_caption)

    async def chat(request: Request) -> Response:
        return await _answer(request, write_answer)

    app.add_route("/health", health, ["GET"])
    app.add_route("/caption", caption, ["POST"])
    app.add_route("/chat", chat, ["POST"])


async def _answer(request: Request, work: Callable[[object], dict[str, str]]) -> Response:
    """Return the HTTP answer to a request: what a function returns for the request's JSON, or an error as JSON.

    Args:
        request: The request, whose body is read.
        work: The function. It is called in a thread of its own, as a model would block all other clients.
    """
    content = await request.body()
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return _refusal("the body is no JSON", 400)

    # Busy first, as it is a ConfigError too: a client may try again.
    try:
        answer = await run_in_threadpool(work, body)
        return JSONResponse(answer)
    except Busy as error:
        return _refusal(str(error), 503, {"Retry-After": "5"})
    except ConfigError as error:
        return _refusal(str(error), 400)
    except Exception:
        _log.exception("the demo's API")
        return _refusal("something went wrong here; the server's terminal says what", 500)


def _refusal(message: str, status: int, headers: dict[str, str] | None = None) -> Response:
    """Return an HTTP answer with a status that holds an error message as JSON."""
    return JSONResponse({"error": message}, status, headers)


def caption_of(body: object, models: Shelf, max_bytes: int) -> dict[str, str]:
    """Write a caption for the picture in a request `POST /caption`, and return `{"caption": TEXT}`.

    The call waits until the chosen model is free.

    Args:
        body: The request's JSON, of any type. A right one is an object of `image` (the base64 of a picture's file) and,
            where the client chooses, `weights` (a model's name), `num_beams`, `temperature` and `max_new_tokens`.
        models: The models that may be chosen; the first one is the default.
        max_bytes: The largest size of the picture's file, in bytes.

    Raises:
        ConfigError: If the request is wrong; the message names the key.
        Busy: If too many other requests wait for the model.
    """
    request = _check_keys(body, "image")
    served, decoding = _choose(request, models)

    # The picture is decoded while the model is held, so that those of waiting clients do not fill the memory.
    with served.turn() as pipeline:
        picture = _decode_picture(request["image"], "image", max_bytes)
        caption = pipeline.caption(picture, **decoding)
    # One picture, and no list of them, has one caption.
    assert isinstance(caption, str)
    return {"caption": caption}


def answer_to(body: object, models: Shelf, max_bytes: int) -> dict[str, str]:
    """Write the next answer in the conversation of a request `POST /chat`, and return `{"answer": TEXT}`.

    The call waits until the chosen model is free.

    Args:
        body: The request's JSON, of any type. A right one is an object of `messages` and, where the client chooses,
            `weights` (a model's name), `num_beams`, `temperature` and `max_new_tokens`. A message is an object of
            `role` ("system", "user" or "assistant"), `text` and, for a user, `images` (base64 of pictures' files).
        models: The models that may be chosen; the first one is the default.
        max_bytes: The largest size of each picture's file, in bytes.

    Raises:
        ConfigError: If the request is wrong, in which case the message names the key, or the conversation is too long
            for the model.
        Busy: If too many other requests wait for the model.
    """
    request = _check_keys(body, "messages")
    served, decoding = _choose(request, models)
    with served.turn() as pipeline:
        turns, pictures = _read_messages(request["messages"], max_bytes)
        answer = reply(pipeline, turns, pictures, **decoding)
    return {"answer": answer}


def _check_keys(body: object, needed_key: str) -> dict[str, Any]:
    """Return the body of a request unchanged, after checking that it is an object of known keys.

    Raises:
        ConfigError: If it is no object, has an unknown key, or lacks the key that it needs.
    """
    known_keys = (needed_key, "weights", *_SETTINGS)
    key_list = ", ".join(known_keys)
    if not isinstance(body, dict):
        raise ConfigError(f"the body has to be an object of {key_list}")

    # A misspelt key would otherwise be passed over in silence.
    unknown_keys = sorted(body.keys() - set(known_keys))
    if unknown_keys:
        # A client's own text is cut, as it may be long.
        first_key = unknown_keys[0][:100]
        raise ConfigError(f"{first_key}: no such key: there are {key_list}")
    if needed_key not in body:
        raise ConfigError(f"{needed_key}: has to be there")
    return body


def _choose(request: dict[str, Any], models: Shelf) -> tuple[Served, dict[str, Any]]:
    """Return the model that a request chooses, and the arguments of transformers' `generate` that it asks for.

    Raises:
        ConfigError: If there is no such model, or a setting is out of its range.
    """
    name = request.get("weights")
    served = models.choose(name)
    wishes = {setting: request.get(setting) for setting in _SETTINGS}
    decoding = served.settings(**wishes)
    return served, decoding


def _read_messages(messages: object, max_bytes: int) -> tuple[list[Turn], list[Image.Image]]:
    """Return the turns of a conversation, and the decoded pictures of all turns in their order.

    Raises:
        ConfigError: If a message is wrong; the error names it, as `messages[0]`.
    """
    if not isinstance(messages, list) or not messages:
        raise ConfigError("messages: has to be a list of at least one message")

    turns: list[Turn] = []
    pictures: list[Image.Image] = []
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        turn, images = _read_message(message, place)

        # Refused before any is decoded, as each may fill 150 MB then.
        num_pictures = len(pictures) + len(images)
        if num_pictures > MOST_PICTURES:
            raise ConfigError(f"{place}.images: at most {MOST_PICTURES} pictures in a conversation")
        for index, image in enumerate(images):
            image_place = f"{place}.images[{index}]"
            pictures.append(_decode_picture(image, image_place, max_bytes))

        turns.append(turn)
    return turns, pictures


def _read_message(message: object, place: str) -> tuple[Turn, list[object]]:
    """Return a message as a turn of visllama, and its images as they were sent.

    Args:
        message: The message, of any type.
        place: The name of the message in error messages, as `messages[0]`.

    Raises:
        ConfigError: If the message has other keys, a value of another type, or images that are not the user's.
    """
    needed_keys = {"role", "text"}
    known_keys = {"role", "text", "images"}
    if not isinstance(message, dict) or not needed_keys <= message.keys() <= known_keys:
        raise ConfigError(f"{place}: has to be an object of role, text and, where there are any, images")
    role = message["role"]
    text = message["text"]
    images = message.get("images", [])

    if not isinstance(role, str) or role not in _SPEAKERS:
        roles = ", ".join(_SPEAKERS)
        raise ConfigError(f"{place}.role: has to be one of {roles}")
    if not isinstance(text, str):
        raise ConfigError(f"{place}.text: has to be a text")
    if not isinstance(images, list):
        raise ConfigError(f"{place}.images: has to be a list")
    if images and role != "user":
        raise ConfigError(f"{place}.images: only a message of the user has images")

    turn = Turn(_SPEAKERS[role], text, len(images))
    return turn, images


def _decode_picture(encoded: object, place: str, max_bytes: int) -> Image.Image:
    """Return the picture whose file a client sent as base64.

    Args:
        encoded: The base64, or whatever else the client sent.
        place: The name of the value in error messages, as `messages[0].images[0]`.
        max_bytes: The largest size of the file, in bytes.

    Raises:
        ConfigError: If the value is anything else, above all a path or an address, or the file is too large.
    """
    if not isinstance(encoded, str):
        raise ConfigError(f"{place}: has to be the base64 of a picture's file")

    # Validated: without it, characters of no base64 would be dropped, and an address could be decoded to something.
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"{place}: no base64: give a file's content, neither a path nor an address") from None

    if len(content) > max_bytes:
        max_mb = max_bytes / 2**20
        raise ConfigError(f"{place}: larger than {max_mb:g} MB")
    return read_picture(content, place)
