"""`source=pope`: read POPE's three files of questions whether an object is in a picture of COCO."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visllama.errors import ConfigError, require
from visllama.prepare.coco import coco_folder, names_of_both_years
from visllama.prepare.questions import QuestionFile, QuestionRow, question_row
from visllama.prepare.raw import ImageFolder, Skipped, read_file, require_file

KINDS = ("random", "popular", "adversarial")
"""The ways in which POPE has chosen the objects that are not in the picture; there is a file for each."""
_LABELS = ("yes", "no")


@dataclass(frozen=True)
class Pope(QuestionFile):
    """The reader of POPE: questions that are answered by yes or no, each with the kind of its file as its `type`.

    Args:
        images: The folder of images, or the one that holds `val2014` and the other folders of COCO's archives.
        annotations: The folder that holds `coco_pope_random.json`, `coco_pope_popular.json` and
            `coco_pope_adversarial.json`; or the path of one of them, whose name contains its kind.

    Reference:
        Li et al. 2023, arXiv:2305.10355.
    """

    FILES = ()

    def check(self) -> None:
        """Check the values of the keys, and that the files and the folder of images are there; no file is opened.

        Raises:
            ConfigError: If a value cannot be used; the message names the key, the value, and what to do.
        """
        super().check()
        for file in self._files().values():
            require_file("annotations", str(file))

    def folder(self) -> ImageFolder:
        """Return the folder `images` and the folders of COCO's archives below it, as one place to look for images."""
        return coco_folder(self.images)

    def _files(self) -> dict[str, Path]:
        """Return the path of each file by its kind, one of `KINDS`; they need not be there.

        Raises:
            ConfigError: If `annotations` is a single file whose name does not contain one kind.
        """
        place = Path(self.annotations).expanduser()
        if place.is_dir():
            return {kind: place / f"coco_pope_{kind}.json" for kind in KINDS}

        stem = place.stem.lower()
        kinds = [kind for kind in KINDS if kind in stem]
        require(
            len(kinds) == 1,
            f"annotations={self.annotations}: its name does not say which file of POPE it is: give "
            f"coco_pope_random.json, coco_pope_popular.json or coco_pope_adversarial.json, or the folder that holds "
            f"all three",
        )
        return {kinds[0]: place}

    def rows(self) -> Iterator[QuestionRow | Skipped]:
        """Yield each question, file by file, or a `Skipped` for one that has to be left out.

        Raises:
            ConfigError: If a file cannot be read, or no line of it looks like one of POPE's.
        """
        for kind, file in self._files().items():
            # Despite its suffix, each file holds a JSON object a line.
            lines = read_file("annotations", str(file)).splitlines()
            entries = [(number, _entry(line)) for number, line in enumerate(lines, start=1) if line.strip()]

            is_pope_file = any("label" in entry and "text" in entry for _, entry in entries)
            if not is_pope_file:
                raise ConfigError(
                    f"annotations={file}: not a POPE file: no line is a JSON object {{question_id, image, text, label}}"
                )

            for number, entry in entries:
                yield _row(kind, f"{file.name}:{number}", entry)


def _row(kind: str, where: str, entry: dict[str, Any]) -> QuestionRow | Skipped:
    """Return the question of an entry of the file of a kind, or why it is left out."""
    label = entry.get("label")
    if label not in _LABELS:
        return Skipped(where, "label", f"label {label!r} is neither yes nor no")

    # Each file counts its questions from one, so that a number alone would stand for three questions.
    number = entry.get("question_id")
    question_id = f"{kind}/{number}" if isinstance(number, (int, str)) else None

    image = entry.get("image")
    names = names_of_both_years(image)
    question = entry.get("text")
    row = question_row(where, image, names, question_id, question, [label])
    if isinstance(row, QuestionRow):
        row.question["type"] = kind
    return row


def _entry(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line; an empty one where the line holds none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}
