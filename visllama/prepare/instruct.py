"""`source=instruct`: read conversations to learn from, in Alpaca's layout (text alone) or LLaVA's (with images)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visllama.console import say
from visllama.data.record import IMAGE_MARK, without_greeting
from visllama.errors import ConfigError
from visllama.prepare.raw import RawData, RawRecord, RawSplit, read_file, read_json, texts

_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
_KNOWN = {"instruction", "conversations"}
"""An entry of either layout has one of these keys."""


@dataclass(frozen=True)
class Instruct(RawData):
    """The reader of a file of conversations: each entry is a record, whose key is the entry's number, from 0.

    Args:
        conversations: The path of a JSON list, or of JSON lines (.jsonl). An entry is either
            `{instruction, input, output}`, or `{image, conversations: [{from, value}]}`, where `image` is a file name,
            a list of them, or not there.
        images: The folder of images; None where no entry names one.
    """

    conversations: str
    images: str | None = None

    FILES = ("conversations",)

    def read(self) -> dict[str, RawSplit]:
        """Read the conversations, and return one split of records in their order, by its name: `split`, or "train".

        Entries that cannot be used are left out. Where a conversation begins with a turn of gpt, that turn alone is
        left out, and the number of such turns is printed.

        Raises:
            ConfigError: If the file cannot be read or holds no entry in a known layout, or entries name images and
                `images` is None.
        """
        raw_split = RawSplit()
        file_name = Path(self.conversations).name
        num_greetings = 0

        for number, entry in enumerate(self._entries()):
            where = f"{file_name}[{number}]"
            if isinstance(entry, dict) and "id" in entry:
                where = f"{where} id {entry['id']!a}"

            try:
                images, turns = _conversation(entry)
            except ValueError as error:
                raw_split.skip(where, *error.args)
                continue

            raw_turns = entry.get("conversations", turns)
            if len(turns) < len(raw_turns):
                num_greetings += 1
            # Each image has one name that its file may have.
            names = tuple((name,) for name in images)
            key = f"{number:08d}"
            record = RawRecord(key, names, {"conversations": turns}, where)
            raw_split.add(record)

        if num_greetings:
            say(
                f"{file_name}: {num_greetings:,} conversations begin with a turn of gpt, which "
                f"answers nothing: it is left out, and they are kept (LLaVA's training does so too)"
            )

        num_with_images = sum(bool(record.images) for record in raw_split.records)
        if num_with_images and self.images is None:
            raise ConfigError(f"images is not given, and {num_with_images} entries name one: images=DIR")
        return {self.split or "train": raw_split}

    def _entries(self) -> list:
        """Return the entries of the file.

        Raises:
            ConfigError: If it cannot be read, is not a list, or no entry has a layout that is known.
        """
        # A broken line costs one entry, but a broken JSON list cannot be read at all.
        if Path(self.conversations).suffix == ".jsonl":
            lines = read_file("conversations", self.conversations).splitlines()
            entries = [_line(line) for line in lines if line.strip()]
        else:
            entries = read_json("conversations", self.conversations)

        has_entries = isinstance(entries, list) and any(_has_known_layout(entry) for entry in entries)
        if not has_entries:
            raise ConfigError(
                f"conversations={self.conversations}: not a list of conversations: entries are "
                f"{{instruction, input, output}} (Alpaca) or {{image, conversations: [{{from, value}}]}} (LLaVA)"
            )
        return entries


def _has_known_layout(entry: Any) -> bool:
    """Return whether an entry is an object with one of the keys of the two layouts."""
    return isinstance(entry, dict) and not _KNOWN.isdisjoint(entry)


def _line(line: bytes) -> Any:
    """Return the content of a line; a line that is no JSON is None, which is then skipped like any other bad entry."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _conversation(entry: Any) -> tuple[list[str], list[dict[str, str]]]:
    """Return an entry's image files and its turns.

    Raises:
        ValueError: If the entry cannot be used; its arguments are the reason and the detail.
    """
    if not _has_known_layout(entry):
        raise ValueError("layout", "neither 'instruction' nor 'conversations'")
    if "conversations" not in entry:
        return [], _alpaca(entry)

    images = _llava_images(entry)
    turns = _llava_turns(entry)
    num_images = len(images)
    num_marks = sum(turn["value"].count(IMAGE_MARK) for turn in turns)
    if num_marks != num_images:
        raise ValueError("marks", f"{num_marks} {IMAGE_MARK} in its turns, and {num_images} images")
    return images, turns


def _llava_images(entry: dict) -> list[str]:
    """Return the names of the images of an entry in LLaVA's layout, which may have none.

    Raises:
        ValueError: If they are no texts; its arguments are the reason and the detail.
    """
    image = entry.get("image")
    if image is None:
        return []
    images = image if isinstance(image, list) else [image]
    if not all(isinstance(name, str) for name in images):
        raise ValueError("layout", f"'image' is {image!r}: a file's name, or a list of them")
    return images


def _llava_turns(entry: dict) -> list[dict[str, str]]:
    """Return the turns of an entry in LLaVA's layout, with our names of the speakers and without a greeting by gpt.

    Raises:
        ValueError: If they are not as they should be; its arguments are the reason and the detail.
    """
    raw_turns = entry["conversations"]
    is_list = isinstance(raw_turns, list) and len(raw_turns) > 0
    if not is_list or not all(isinstance(turn, dict) for turn in raw_turns):
        raise ValueError("layout", "'conversations' is no list of {from, value}")

    turns = []
    raw_speakers = []
    for raw_turn in raw_turns:
        raw_speaker = raw_turn.get("from")
        raw_speakers.append(raw_speaker)
        # An unknown speaker becomes an empty one, which `_check_turns` refuses.
        speaker = _SPEAKERS.get(str(raw_speaker), "")
        turns.append({"from": speaker, "value": raw_turn.get("value")})

    turns = without_greeting(turns)
    _check_turns(turns, raw_speakers)
    return turns


def _check_turns(turns: list[dict[str, Any]], speakers: list) -> None:
    """Check that human and gpt speak by turns, after a system text if there is one, and that each turn has a text.

    Args:
        turns: The turns, at least one, each with the name of its speaker in our own spelling.
        speakers: The speakers as the file spells them, for the message.

    Raises:
        ValueError: If not; its arguments are the reason and the detail.
    """
    spoken = [turn["from"] for turn in turns]
    if spoken[0] == "system":
        spoken = spoken[1:]
    expected = ["human" if i % 2 == 0 else "gpt" for i in range(len(spoken))]
    if spoken != expected or len(spoken) < 2:
        raise ValueError("turns", f"{speakers[:6]} are no turns of human and gpt, one after the other")

    turn_texts = texts(turn["value"] for turn in turns)
    if len(turn_texts) < len(turns):
        raise ValueError("text", "a turn without text")


def _alpaca(entry: dict) -> list[dict[str, str]]:
    """Return the two turns of an entry in Alpaca's layout; its `input`, if there is one, follows the instruction.

    Raises:
        ValueError: If the entry cannot be used; its arguments are the reason and the detail.
    """
    instruction = texts([entry.get("instruction")])
    prompt = instruction + texts([entry.get("input")])
    output = texts([entry.get("output")])
    if not instruction or not output:
        raise ValueError("text", "an instruction or an output without text")
    all_texts = prompt + output
    if any(IMAGE_MARK in text for text in all_texts):
        raise ValueError("marks", f"{IMAGE_MARK} in it, and it has no image")

    return [
        {"from": "human", "value": "\n\n".join(prompt)},
        {"from": "gpt", "value": output[0]},
    ]
