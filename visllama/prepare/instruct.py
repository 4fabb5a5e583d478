"""`source=instruct`: conversations to follow, Alpaca's (language alone) or LLaVA's, with any number of images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visllama.console import say
from visllama.data.record import IMAGE_MARK, without_greeting
from visllama.errors import ConfigError
from visllama.prepare.raw import RawData, RawRecord, RawSplit, read_json, texts

_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}


@dataclass(frozen=True)
class Instruct(RawData):
    """Conversations; an entry of the file is a record, which its number names.

    Args:
        conversations: A JSON list (or a JSON object a line, .jsonl) of `{instruction, input, output}`, or of
            `{image, conversations: [{from, value}]}`, where `image` is a file, a list of files, or not there.
        images: The folder of images; None where no entry names one.
    """

    conversations: str
    images: str | None = None

    FILES = ("conversations",)

    def read(self) -> dict[str, RawSplit]:
        entries, made = self._entries(), RawSplit()
        num_greetings = 0
        for number, entry in enumerate(entries):
            where = f"{Path(self.conversations).name}[{number}]"
            told = f"{where} id {entry['id']!a}" if isinstance(entry, dict) and "id" in entry else where
            try:
                images, turns = _conversation(entry)
            except ValueError as error:
                made.skip(told, *error.args)
            else:
                if len(turns) < len(entry.get("conversations", turns)):
                    num_greetings += 1
                record = {"conversations": turns}
                made.add(RawRecord(f"{number:08d}", tuple((name,) for name in images), record, told))
        if num_greetings:
            say(
                f"{Path(self.conversations).name}: {num_greetings:,} conversations begin with a turn of gpt, which "
                f"answers nothing: it is left out, and they are kept (LLaVA's training does so too)"
            )
        with_images = sum(bool(record.images) for record in made.records)
        if with_images and self.images is None:
            raise ConfigError(f"images is not given, and {with_images} entries name one: images=DIR")
        return {self.split or "train": made}

    def _entries(self) -> list:
        if Path(self.conversations).suffix == ".jsonl":
            lines = Path(self.conversations).expanduser().read_bytes().splitlines()
            entries = [_line(line) for line in lines if line.strip()]
        else:
            entries = read_json("conversations", self.conversations)
        if not isinstance(entries, list) or not any(isinstance(e, dict) and _KNOWN & e.keys() for e in entries):
            raise ConfigError(
                f"conversations={self.conversations}: no list of conversations: entries are "
                f"{{instruction, input, output}} (Alpaca) or {{image, conversations: [{{from, value}}]}} (LLaVA)"
            )
        return entries


_KNOWN = {"instruction", "conversations"}


def _line(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _conversation(entry: Any) -> tuple[list[str], list[dict[str, str]]]:
    """Return an entry's image files and its turns; a `ValueError` holds reason and detail."""
    if not isinstance(entry, dict) or not _KNOWN & entry.keys():
        raise ValueError("layout", "neither 'instruction' nor 'conversations'")
    if "conversations" not in entry:
        return [], _alpaca(entry)
    image = entry.get("image")
    images = [] if image is None else image if isinstance(image, list) else [image]
    if not all(isinstance(name, str) for name in images):
        raise ValueError("layout", f"'image' is {image!r}: a file's name, or a list of them")
    given = entry["conversations"]
    if not isinstance(given, list) or not given or not all(isinstance(turn, dict) for turn in given):
        raise ValueError("layout", "'conversations' is no list of {from, value}")
    turns = [{"from": _SPEAKERS.get(str(turn.get("from")), ""), "value": turn.get("value")} for turn in given]
    turns = without_greeting(turns)
    _check_turns(turns, [turn.get("from") for turn in given])
    marks = sum(turn["value"].count(IMAGE_MARK) for turn in turns)
    if marks != len(images):
        raise ValueError("marks", f"{marks} {IMAGE_MARK} in its turns, and {len(images)} images")
    return images, turns


def _check_turns(turns: list[dict[str, Any]], speakers: list) -> None:
    spoken = turns[1:] if turns[0]["from"] == "system" else turns
    wanted = ["human" if i % 2 == 0 else "gpt" for i in range(len(spoken))]
    if [turn["from"] for turn in spoken] != wanted or len(spoken) < 2:
        raise ValueError("turns", f"{speakers[:6]} are no turns of human and gpt, one after the other")
    if len(texts(turn["value"] for turn in turns)) < len(turns):
        raise ValueError("text", "a turn without text")


def _alpaca(entry: dict) -> list[dict[str, str]]:
    told, output = texts([entry.get("instruction"), entry.get("input")]), texts([entry.get("output")])
    if not texts([entry.get("instruction")]) or not output:
        raise ValueError("text", "an instruction or an output without text")
    if any(IMAGE_MARK in text for text in told + output):
        raise ValueError("marks", f"{IMAGE_MARK} in it, and it has no image")
    return [{"from": "human", "value": "\n\n".join(told)}, {"from": "gpt", "value": output[0]}]
