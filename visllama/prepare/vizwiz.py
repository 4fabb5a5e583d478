"""`source=vizwiz`: VizWiz-VQA's file (`val.json`), a question about each picture that a blind person took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from visllama.errors import ConfigError
from visllama.prepare.questions import QuestionFile, QuestionRow, question_row
from visllama.prepare.raw import ImageFolder, Skipped, read_json

FOLDERS = ("train", "val", "test")
"""What VizWiz's own archives unpack to."""


@dataclass(frozen=True)
class VizWiz(QuestionFile):
    """Questions with ten answers each, of which `unanswerable` is one like any other.

    Args:
        images: The folder of images, or the one that holds `train`, `val` and `test`.
        annotations: `val.json` and its like. A question has no id in it: it goes by the name of its picture.

    Reference:
        Gurari et al. 2018, arXiv:1802.08218.
    """

    def folder(self) -> ImageFolder:
        return ImageFolder([self.images, *(Path(self.images).expanduser() / name for name in FOLDERS)])

    def rows(self) -> Iterator[QuestionRow | Skipped]:
        entries = read_json("annotations", self.annotations)
        if not isinstance(entries, list) or not any(
            isinstance(e, dict) and {"image", "question"} <= set(e) for e in entries
        ):
            raise ConfigError(
                f"annotations={self.annotations}: no VizWiz-VQA file: no list of {{image, question, answers}}"
            )
        for number, entry in enumerate(entries):
            entry = entry if isinstance(entry, dict) else {}
            image, given = entry.get("image"), entry.get("answers")
            answers = (
                [a.get("answer") if isinstance(a, dict) else None for a in given] if isinstance(given, list) else []
            )
            row = question_row(f"[{number}]", image, (image,), image, entry.get("question"), answers)
            if isinstance(row, QuestionRow) and isinstance(entry.get("answer_type"), str):
                row.question["answer_type"] = entry["answer_type"]
            yield row
