"""The JSON API: captions and answers for other programs, at the page's own address.

    POST /caption  {"image": BASE64, "weights"?, "num_beams"?, "temperature"?, "max_new_tokens"?}  ->  {"caption": TEXT}
    POST /chat     {"messages": [{"role": ROLE, "text": TEXT, "images"?: [BASE64]}], ...}          ->  {"answer": TEXT}
    GET  /health                                                                      ->  {"weights": [NAME]}

An image is the base64 of a JPEG, PNG, WebP, GIF or BMP file, and nothing else: no path and no address. ROLE is "user",
"assistant" or, for the first message alone, "system"; the two others take turns, and the last message is the user's.
The assistant's are taken as said: nothing is remembered between two requests. `weights` is a name of /health, the first
one without it. Without the other keys the server's own decoding holds; with `temperature` a text is sampled.

What is wrong with a request is answered by 400 and {"error": MESSAGE}; 413 is too large, 429 too often, 503 too many at
once.
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
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}
_log = logging.getLogger("visllama")


def add_api(app: FastAPI, models: Shelf, max_bytes: int) -> None:
    """Add the routes of the API to an application.

    Args:
        app: The application.
        models: The models that answer.
        max_bytes: The largest size of a picture's file.
    """

    async def health(request: Request) -> Response:
        return JSONResponse({"weights": models.names})

    async def caption(request: Request) -> Response:
        return await _answer(request, lambda body: caption_of(body, models, max_bytes))

    async def chat(request: Request) -> Response:
        return await _answer(request, lambda body: answer_to(body, models, max_bytes))

    app.add_route("/health", health, ["GET"])
    app.add_route("/caption", caption, ["POST"])
    app.add_route("/chat", chat, ["POST"])


async def _answer(request: Request, work: Callable[[object], dict[str, str]]) -> Response:
    """Work on a request's JSON in a thread, and answer by JSON whatever happens."""
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        return JSONResponse({"error": "the body is no JSON"}, 400)
    try:
        return JSONResponse(await run_in_threadpool(work, body))
    except Busy as error:
        return JSONResponse({"error": str(error)}, 503, {"Retry-After": "5"})
    except ConfigError as error:
        return JSONResponse({"error": str(error)}, 400)
    except Exception:
        _log.exception("the demo's API")
        return JSONResponse({"error": "something went wrong here; the server's terminal says what"}, 500)


def caption_of(body: object, models: Shelf, max_bytes: int) -> dict[str, str]:
    """Return the answer to `POST /caption`.

    Raises:
        ConfigError: If the request is wrong, naming the key.
    """
    request = _checked(body, "image")
    served, decoding = _choices(request, models)
    with served.turn() as pipeline:  # decoded in here: of many clients one picture at a time fills the memory
        picture = _picture(request["image"], "image", max_bytes)
        return {"caption": pipeline.caption(picture, **decoding)}


def answer_to(body: object, models: Shelf, max_bytes: int) -> dict[str, str]:
    """Return the answer to `POST /chat`.

    Raises:
        ConfigError: If the request is wrong, naming the key, or the conversation is too long for the model.
    """
    request = _checked(body, "messages")
    served, decoding = _choices(request, models)
    with served.turn() as pipeline:
        turns, pictures = _turns(request["messages"], max_bytes)
        return {"answer": reply(pipeline, turns, pictures, **decoding)}


def _checked(body: object, needed: str) -> dict[str, Any]:
    known = (needed, "weights", *_SETTINGS)
    if not isinstance(body, dict):
        raise ConfigError(f"the body has to be an object of {', '.join(known)}")
    unknown = sorted(body.keys() - set(known))
    if unknown:
        raise ConfigError(f"{unknown[0][:100]}: no such key: there are {', '.join(known)}")
    if needed not in body:
        raise ConfigError(f"{needed}: has to be there")
    return body


def _choices(request: dict[str, Any], models: Shelf) -> tuple[Served, dict[str, Any]]:
    """Return the model that a request chooses, and the settings of `generate`."""
    served = models.choose(request.get("weights"))
    return served, served.settings(**{name: request.get(name) for name in _SETTINGS})


def _turns(messages: object, max_bytes: int) -> tuple[list[Turn], list[Image.Image]]:
    """Return the turns of a conversation and the pictures of all of them, in their order."""
    if not isinstance(messages, list) or not messages:
        raise ConfigError("messages: a list of at least one message")
    turns, pictures = [], []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or not {"role", "text"} <= message.keys() <= {"role", "text", "images"}:
            raise ConfigError(f"{where}: an object of role, text and, where there are any, images")
        role, text, images = message["role"], message["text"], message.get("images", [])
        if not isinstance(role, str) or role not in _SPEAKERS:
            raise ConfigError(f"{where}.role: one of {', '.join(_SPEAKERS)}")
        if not isinstance(text, str):
            raise ConfigError(f"{where}.text: a text")
        if not isinstance(images, list) or (images and role != "user"):
            raise ConfigError(f"{where}.images: a list, of a user's message")
        if len(pictures) + len(images) > MOST_PICTURES:
            raise ConfigError(f"{where}.images: at most {MOST_PICTURES} pictures in a conversation")
        pictures += [_picture(image, f"{where}.images[{i}]", max_bytes) for i, image in enumerate(images)]
        turns.append(Turn(_SPEAKERS[role], text, len(images)))
    return turns, pictures


def _picture(given: object, where: str, max_bytes: int) -> Image.Image:
    """Decode base64 of a picture's file; anything else is refused, an address or a path above all."""
    if not isinstance(given, str):
        raise ConfigError(f"{where}: the base64 of a picture's file")
    try:
        content = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"{where}: no base64: give a file's content, neither a path nor an address") from None
    if len(content) > max_bytes:
        raise ConfigError(f"{where}: larger than {max_bytes / 2**20:g} MB")
    return read_picture(content, where)
