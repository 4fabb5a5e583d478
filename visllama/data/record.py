"""What a record of a shard holds: `KEY.jpg` (or `KEY.0.jpg`, `KEY.1.jpg`; png, webp) beside `KEY.json` or `KEY.txt`.

KEY.json holds one of `captions: [text]`, `questions: [{question, answers, id}]` and `conversations: [{from, value}]`;
its other keys are metadata: `image_id` is the image's own name, a whole number (as in COCO) or a text (a file's name);
`type` is a text by which captions are judged apart (nocaps' domain), as a question's own `type` is; and other numbers
are scores. KEY.txt is one caption, where KEY.json holds none of the three.
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
_SUFFIX = re.compile(r"([0-9]{1,4}\.)?(jpg|jpeg|png|webp)|txt|json")
_SHAPES = {
    "captions": "captions: [text, ...]",
    "questions": "questions: [{question: text, answers: [text, ...]}, ...]",
    "conversations": "conversations: [{from: human|gpt|system, value: text}, ...]",
}
_SPEAKERS = ("from", "value")
_NUMBERS = (int, float)
_MOST = 3e38
_SHOWN = 200
_JSON_SPACES = " \t\n\r"
_raw_decode = json.JSONDecoder().raw_decode


class Text(NamedTuple):
    """A record's text.

    Attributes:
        kind: One of `KINDS`.
        items: Of that kind; each is one thing to learn, a conversation as a whole.
        scores: Numbers that the record's metadata hold, by name.
        image_id: The image's own name in the data set that it came from; None where the record brings none.
        type: What the record is one of, as "near-domain"; None where it does not say so.
    """

    kind: str
    items: list
    scores: dict[str, float]
    image_id: int | str | None = None
    type: str | None = None

    @property
    def num_pairs(self) -> int:
        """Things to learn, each with the record's images."""
        return 1 if self.kind == "conversations" else len(self.items)


@lru_cache(maxsize=1024)
def is_read(suffix: str) -> bool:
    """Return whether a member with this suffix is one that we read; nothing else ever is."""
    return _SUFFIX.fullmatch(suffix) is not None


def image_suffixes(suffixes: Iterable[str]) -> list[str]:
    """Return the suffixes of images, in the order of their numbers."""
    images = [suffix for suffix in suffixes if suffix not in ("txt", "json")]
    return sorted(images, key=_image_number) if len(images) > 1 else images


def _image_number(suffix: str) -> int:
    return int(suffix.partition(".")[0]) if "." in suffix else -1


def read_text(members: Mapping[str, bytes], num_images: int) -> Text:
    """Read a record's text.

    Args:
        members: Contents of `txt` and `json`, those there are.
        num_images: Images of the record.

    Raises:
        BadRecord: If there is none to learn from, or it does not fit the images.
    """
    described: Any = {}
    try:
        if "json" in members:
            described = _load(_decode(members["json"]))
        described = described if isinstance(described, dict) else {}
        kinds = [kind for kind in KINDS if described.get(kind)]
        if len(kinds) > 1:
            raise BadRecord("text", f"holds {' and '.join(kinds)}: one of them is a record")
        items = described[kinds[0]] if kinds else [_decode(members["txt"])] if "txt" in members else None
        if "json" in members and b"\\ud" in members["json"].lower():
            json.dumps(items, ensure_ascii=False).encode()  # half an emoji is no text: no tokenizer takes it
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadRecord):
            raise
        raise BadRecord("text", f"cannot be read ({str(error)[:_SHOWN]})") from error
    if items is None:
        raise BadRecord("text", "has no captions: KEY.json with 'captions': [text], or KEY.txt")
    kind = kinds[0] if kinds else "captions"
    image_id = _own_id(described.pop("image_id", None))  # no score: the index would keep a number a record
    scores = {
        name: value
        for name, value in described.items()
        # What float32 holds, as it does not NaN and infinity; and of a name, what a file holds.
        if type(value) in _NUMBERS and -_MOST < value < _MOST and name.isprintable() and len(name) <= _SHOWN
    }
    return Text(kind, _check_items(kind, items, num_images), scores, image_id, _own_text(described.get("type")))


def images_of(record: Mapping) -> list:
    """Return a record's images, none, one or several."""
    return record["images"] if "images" in record else [record["image"]] if "image" in record else []


def check_record(record: object) -> dict[str, Any]:
    """Return a record that somebody's own source has given, once it is one, with its texts as a shard's are.

    Args:
        record: A mapping with `key`, `image` or `images`, and one of `KINDS`.

    Raises:
        BadRecord: Naming the record's key, what was found, and what has to be there.
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
            found = " and ".join(kinds) or "none of them"
            raise BadRecord("text", f"has {found}: a record has one of {', '.join(KINDS)}")
        items = _check_items(kinds[0], record[kinds[0]], len(images))
        json.dumps(items, ensure_ascii=False, default=str).encode()  # half an emoji is no text: no tokenizer takes it
    except BadRecord as error:
        raise BadRecord(error.reason, f"{key!r}: {error.detail}") from error
    except (ValueError, RecursionError) as error:
        raise BadRecord("text", f"{key!r}: cannot be read ({str(error)[:_SHOWN]})") from error
    return {**record, kinds[0]: items}


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
    """Return a record's own id; what others keep under this name and is none, is metadata."""
    return value if type(value) is int else _own_text(value)


def _own_text(value: object) -> str | None:
    if not isinstance(value, str) or value.strip() == "":
        return None
    is_whole = value.encode("utf-8", "ignore").decode("utf-8") == value  # no half emoji
    return value if is_whole else None


def _decode(content: bytes) -> str:
    return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8")  # the mark that Windows puts before a text


def _load(text: str) -> Any:
    """Read JSON, as `json.loads` does; of a short text, that spends half its time on spaces around it."""
    try:
        found, end = _raw_decode(text)
        if not text[end:].strip(_JSON_SPACES):
            return found
    except ValueError:
        pass
    return json.loads(text)  # spaces before it, or what is wrong, in its words


def _check_items(kind: str, items: object, num_images: int) -> list:
    if not isinstance(items, list):
        raise BadRecord("text", f"has no {kind}: they are a list, not {type(items).__name__}: {_SHAPES[kind]}")
    if kind == "conversations":
        good = all(isinstance(i, dict) and all(isinstance(i.get(name), str) for name in _SPEAKERS) for i in items)
        items = without_greeting(items) if good else items
        if good and not _take_turns([item["from"] for item in items]):
            raise BadRecord("text", "its conversation is not of human and gpt by turns, a system before them at most")
        marks = sum(item["value"].count(IMAGE_MARK) for item in items if item["from"] == "human") if good else 0
        if good and marks != num_images:
            raise BadRecord("text", f"its conversation has {marks} {IMAGE_MARK}, and the record {num_images} images")
    elif kind == "questions":
        good = all(isinstance(i, dict) and isinstance(i.get("question"), str) for i in items)
        good = good and all(_are_texts(item.get("answers")) for item in items)
    else:
        good = _are_texts(items)
        items = [text.strip() for text in items] if good else items
        if good and "" in items:
            raise BadRecord("text", "has an empty caption: give it one, or leave the record out")
    if not good:
        raise BadRecord("text", f"has no {kind} as they should be: {_SHAPES[kind]}")
    return items


def without_greeting(turns: list[dict]) -> list[dict]:
    """Return a conversation's turns without a first one of gpt, which answers nothing.

    Conversations that were shared from a chat may begin so. LLaVA's training code leaves that turn out as well.
    """
    first = 1 if turns and turns[0]["from"] == "system" else 0
    if [turn["from"] for turn in turns[first : first + 2]] != ["gpt", "human"]:
        return turns
    return turns[:first] + turns[first + 1 :]


def _take_turns(speakers: list[str]) -> bool:
    spoken = speakers[speakers[:1] == ["system"] :]
    return len(spoken) > 1 and spoken == (["human", "gpt"] * len(spoken))[: len(spoken)]


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and set(map(type, value)) == {str}
