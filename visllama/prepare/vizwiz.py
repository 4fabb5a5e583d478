"""`source=vizwiz`: VizWiz-VQA's file (`val.json`), a question about each picture that a blind person took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from visllama.errors import ConfigError
from visllama.prepare.questions import QuestionFile, QuestionRow, question_row
from visllama.prepare.raw import ImageFolder, Skipped, read_json

FOLDERS = ("train", "val", "test")
"""The folders that VizWiz's own archives unpack to."""


@dataclass(frozen=True)
class VizWiz(QuestionFile):
    """Questions with ten answers each; `unanswerable` is an answer like any other.

    Args:
        images: The folder of images, or the one that holds `train`, `val` and `test`.
        annotations: `val.json` and its like. A question has no id there: the name of its picture is its id.

    Reference:
        Gurari et al. 2018, arXiv:1802.08218.
    """

    def folder(self) -> ImageFolder:
        parent = Path(self.images).expanduser()
        subfolders = [parent / name for name in FOLDERS]
        return ImageFolder([self.images, *subfolders])

    def rows(self) -> Iterator[QuestionRow | Skipped]:
        entries = read_json("annotations", self.annotations)
        if not isinstance(entries, list) or not any(_has_layout(entry) for entry in entries):
            raise ConfigError(
                f"annotations={self.annotations}: not a VizWiz-VQA file: no list of {{image, question, answers}}"
            )

        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                entry = {}
            image = entry.get("image")
            names = (image,) if isinstance(image, str) else ()
            answers = _answers(entry.get("answers"))
            row = question_row(f"[{number}]", image, names, image, entry.get("question"), answers)

            answer_type = entry.get("answer_type")
            if isinstance(row, QuestionRow) and isinstance(answer_type, str):
                row.question["answer_type"] = answer_type
            yield row


def _has_layout(entry: object) -> bool:
    return isinstance(entry, dict) and {"image", "question"} <= set(entry)


def _answers(entries: object) -> list:
    """Return the answers of annotators; what is no answer is None, which `question_row` refuses."""
    if not isinstance(entries, list):
        return []
    return [entry.get("answer") if isinstance(entry, dict) else None for entry in entries]
