"""Read and check records: the text and the images that share a key.

In a shard (a tar), a record is `KEY.jpg` (or `KEY.0.jpg`, `KEY.1.jpg`; png, webp) beside `KEY.json` or `KEY.txt`. KEY
is the record's key, and what follows its dot is a member's suffix ("0.jpg", "json").

KEY.json holds one of `captions: [text]`, `questions: [{question, answers, id}]` and `conversations: [{from, value}]`.
Its other keys are metadata. `image_id` is the image's own name, a whole number (as in COCO) or a text (a file's name).
`type` is a text: captions of one type (nocaps' domain) are also scored by themselves, as questions are by a `type` of
their own. Other numbers are scores, by which a source can filter records. KEY.txt is one caption, and is read where
KEY.json holds none of the three.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from PIL import Image

from visllama.errors import BadRecord
from visllama.text.template import IMAGE_MARK

KINDS = ("captions", "questions", "conversations")
"""The kinds of text of which a record holds one."""
_SUFFIX = re.compile(r"([0-9]{1,4}\.)?(jpg|jpeg|png|webp)|txt|json")
_SHAPES = {
    "captions": "captions: [text, ...]",
    "questions": "questions: [{question: text, answers: [text, ...]}, ...]",
    "conversations": "conversations: [{from: human|gpt|system, value: text}, ...]",
}
_TURN_KEYS = ("from", "value")
# About the largest number that float32, in which the index keeps scores, holds.
_MAX_SCORE = 3e38
_MAX_SHOWN = 200
_JSON_SPACES = " \t\n\r"
_raw_decode = json.JSONDecoder().raw_decode


class Text(NamedTuple):
    """The text and the metadata of a record.

    Attributes:
        kind: One of `KINDS`.
        items: The captions (texts), the questions (dicts), or the turns of the conversation (dicts). Each caption and
            each question is one thing to learn; a conversation is one as a whole.
        scores: The numbers in the record's metadata, by name.
        image_id: The image's own name in the data set that it came from; None where the record has none.
        type: The name of a group of records whose captions are also scored as a group of its own, as "near-domain";
            None where the record names none.
    """

    kind: str
    items: list
    scores: dict[str, float]
    image_id: int | str | None = None
    type: str | None = None

    @property
    def num_pairs(self) -> int:
        """Number of things to learn: the captions or questions, or 1 for a conversation."""
        return 1 if self.kind == "conversations" else len(self.items)


@lru_cache(maxsize=1024)
def is_read(suffix: str) -> bool:
    """Return whether a tar's members with this suffix belong to a record ("jpg", "0.png", "json", "txt", ...)."""
    return _SUFFIX.fullmatch(suffix) is not None


def image_suffixes(suffixes: Iterable[str]) -> list[str]:
    """Return the suffixes of a record's images, sorted: all but "txt" and "json".

    They are sorted by the number before the dot, as in "0.jpg", "1.jpg"; a suffix without a dot, "jpg", comes first.

    Args:
        suffixes: What follows the key and a dot in the name of each of the record's files.

    Raises:
        ValueError: If there are several images, and the part of a suffix before its dot is no whole number.
    """
    images = [suffix for suffix in suffixes if suffix not in ("txt", "json")]
    if len(images) > 1:
        images.sort(key=_image_number)
    return images


def _image_number(suffix: str) -> int:
    """Return the number in a suffix such as "0.jpg"; -1 for one without a number, which comes first."""
    number, dot, _ = suffix.partition(".")
    return int(number) if dot else -1


def read_text(members: Mapping[str, bytes], num_images: int) -> Text:
    """Return the text and the metadata of a record, parsed from its files and checked.

    Spaces around captions are stripped, and a turn of gpt before the first human's turn is left out.

    Args:
        members: The contents of the record's files by suffix, "json" and "txt"; either may be missing. The text of
            "txt", one caption, is used only where "json" holds no text of any of `KINDS`.
        num_images: The number of the record's images. A conversation must have as many image marks (`IMAGE_MARK`).

    Raises:
        BadRecord: With the reason "text", if the files cannot be parsed, hold no text or more than one kind of text, a
            text has not the shape of its kind, or a conversation's image marks are not `num_images`.
    """
    metadata: dict[str, Any] = {}
    try:
        if "json" in members:
            loaded = _load(_decode(members["json"]))
            if isinstance(loaded, dict):
                metadata = loaded

        # An empty list is no text: beside it, another kind or KEY.txt may hold the record's.
        kinds = [kind for kind in KINDS if metadata.get(kind)]
        if len(kinds) > 1:
            raise BadRecord("text", f"holds {' and '.join(kinds)}: one of them is a record")
        if kinds:
            items = metadata[kinds[0]]
        elif "txt" in members:
            items = [_decode(members["txt"])]
        else:
            items = None

        if "json" in members and b"\\ud" in members["json"].lower():
            # An escape may make half an emoji, which is no text: no tokenizer takes it.
            json.dumps(items, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadRecord):
            raise
        raise BadRecord("text", f"cannot be read ({str(error)[:_MAX_SHOWN]})") from error
    if items is None:
        raise BadRecord("text", "has no captions: KEY.json with 'captions': [text], or KEY.txt")

    # Taken out before the scores are read: the index would keep it as a number of each record.
    image_id = _own_id(metadata.pop("image_id", None))
    scores = {name: value for name, value in metadata.items() if _is_score(name, value)}

    kind = kinds[0] if kinds else "captions"
    items = _check_items(kind, items, num_images)
    return Text(kind, items, scores, image_id, _own_text(metadata.get("type")))


def _is_score(name: str, value: object) -> bool:
    """Return whether metadata are a score: a finite number that float32 can hold, under a printable, short name."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -_MAX_SCORE < value < _MAX_SCORE and name.isprintable() and len(name) <= _MAX_SHOWN


def images_of(record: Mapping) -> list:
    """Return a record's `images`, unchanged, or its `image` in a list; an empty list where it has neither."""
    if "images" in record:
        return record["images"]
    if "image" in record:
        return [record["image"]]
    return []


def check_record(record: object) -> dict[str, Any]:
    """Check a record of a user's own source, and return a copy of it.

    In the copy, spaces around captions are stripped, and a greeting that opens a conversation is left out. No image is
    decoded.

    Args:
        record: A mapping with `key`, one of `KINDS`, and `image`, `images` or neither.

    Raises:
        BadRecord: If something is missing or of another type than it must be. The message names the record's key, what
            was found, and what has to be there.
    """
    if not isinstance(record, Mapping):
        raise BadRecord("text", f"is a {type(record).__name__}: a record is a dict with key, image and captions")
    key = record.get("key")
    if not isinstance(key, str) or not key.strip():
        raise BadRecord("text", f"has key={key!r}: a record has a text of its own as its key")

    try:
        images = _check_images(record)
        kinds = [kind for kind in KINDS if kind in record]
        if len(kinds) != 1:
            description = " and ".join(kinds) or "none of them"
            raise BadRecord("text", f"has {description}: a record has one of {', '.join(KINDS)}")
        kind = kinds[0]
        items = _check_items(kind, record[kind], len(images))

        # Half an emoji cannot be encoded: it is no text, and no tokenizer takes it.
        json.dumps(items, ensure_ascii=False, default=str).encode()
    except BadRecord as error:
        raise BadRecord(error.reason, f"{key!r}: {error.detail}") from error
    except (ValueError, RecursionError) as error:
        raise BadRecord("text", f"{key!r}: cannot be read ({str(error)[:_MAX_SHOWN]})") from error
    return {**record, kind: items}


def _check_images(record: Mapping) -> list:
    if "image" in record and "images" in record:
        raise BadRecord("image", "has image and images: it has one of them, or none where there is no image")
    images = images_of(record)
    if not isinstance(images, (list, tuple)):
        raise BadRecord("image", f"its images are a {type(images).__name__}: they are a list")

    for image in images:
        if not isinstance(image, (bytes, Image.Image)):
            raise BadRecord(
                "image",
                f"its image is a {type(image).__name__}: it is a PIL image, or a file's bytes, as "
                f"Path(FILE).read_bytes() gives them",
            )
    return list(images)


def _own_id(value: object) -> int | str | None:
    """Return an `image_id` unchanged if it is a whole number or a text; None for any other value."""
    # No subclass: true and false are no ids.
    if type(value) is int:
        return value
    return _own_text(value)


def _own_text(value: object) -> str | None:
    """Return a text unchanged; None for a value that is no text, is blank, or holds half an emoji."""
    if not isinstance(value, str) or value.strip() == "":
        return None
    without_halves = value.encode("utf-8", "ignore").decode("utf-8")
    has_half_emoji = without_halves != value
    return None if has_half_emoji else value


def _decode(content: bytes) -> str:
    # Windows puts a byte order mark before a text.
    return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8")


def _load(text: str) -> Any:
    """Read JSON, as `json.loads` does, which spends half of its time with a short text on the spaces around it."""
    try:
        value, end = _raw_decode(text)
        if not text[end:].strip(_JSON_SPACES):
            return value
    except ValueError:
        pass

    # There are spaces before the value, or an error, which `json.loads` describes.
    return json.loads(text)


def _check_items(kind: str, items: object, num_images: int) -> list:
    """Check a record's captions, questions or turns, and return them, captions stripped and greetings left out.

    Raises:
        BadRecord: If they have not the shape of their kind, or a conversation's image marks are not `num_images`.
    """
    if not isinstance(items, list):
        raise BadRecord("text", f"has no {kind}: they are a list, not {type(items).__name__}: {_SHAPES[kind]}")

    checks = {"captions": _are_texts, "questions": _are_questions, "conversations": _are_turns}
    if not checks[kind](items):
        raise BadRecord("text", f"has no {kind} as they should be: {_SHAPES[kind]}")

    if kind == "captions":
        return _check_captions(items)
    if kind == "conversations":
        return _check_conversation(items, num_images)
    return items


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and set(map(type, value)) == {str}


def _are_questions(items: list) -> bool:
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("question"), str):
            return False

        if not _are_texts(item.get("answers")):
            return False
    return True


def _are_turns(items: list) -> bool:
    for item in items:
        if not isinstance(item, dict):
            return False

        if not all(isinstance(item.get(name), str) for name in _TURN_KEYS):
            return False

    return True


def _check_captions(captions: list[str]) -> list[str]:
    stripped = [caption.strip() for caption in captions]
    if "" in stripped:
        raise BadRecord("text", "has an empty caption: give it one, or leave the record out")
    return stripped


def _check_conversation(turns: list[dict], num_images: int) -> list[dict]:
    turns = without_greeting(turns)
    if not _take_turns([turn["from"] for turn in turns]):
        raise BadRecord("text", "its conversation is not of human and gpt by turns, a system before them at most")

    num_marks = sum(turn["value"].count(IMAGE_MARK) for turn in turns if turn["from"] == "human")
    if num_marks != num_images:
        raise BadRecord("text", f"its conversation has {num_marks} {IMAGE_MARK}, and the record {num_images} images")
    return turns


def without_greeting(turns: list[dict]) -> list[dict]:
    """Return a conversation's turns without the greeting: a turn of gpt before the first human's turn.

    Where there is no greeting, `turns` itself is returned; it is never changed. A system's text before the greeting
    stays. Conversations that were shared from a chat may begin so; LLaVA's training code leaves greetings out as well.

    Args:
        turns: The turns in order, each a dict whose `from` is "human", "gpt" or "system".
    """
    # A system's text may stand before the greeting, and is kept.
    first = 1 if turns and turns[0]["from"] == "system" else 0
    speakers = [turn["from"] for turn in turns[first : first + 2]]
    if speakers != ["gpt", "human"]:
        return turns
    return turns[:first] + turns[first + 1 :]


def _take_turns(speakers: list[str]) -> bool:
    """Return whether a human and gpt speak in turns, a human first and one of each at least."""
    if speakers and speakers[0] == "system":
        speakers = speakers[1:]
    alternating = ["human", "gpt"] * len(speakers)
    return len(speakers) > 1 and speakers == alternating[: len(speakers)]
