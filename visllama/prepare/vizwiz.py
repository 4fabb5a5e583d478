"""`source=vizwiz`: read VizWiz-VQA's file (`val.json`), in which blind people ask about pictures that they took."""

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
    """The reader of VizWiz-VQA: one question, with ten answers, for each picture; "unanswerable" is an answer too.

    Args:
        images: The folder of images, or the one that holds `train`, `val` and `test`.
        annotations: The path of VizWiz-VQA's JSON file of a split, for example `val.json`. A question has no id there:
            the file name of its picture becomes its id.

    Reference:
        Gurari et al. 2018, arXiv:1802.08218.
    """

    def folder(self) -> ImageFolder:
        """Return the folder `images` and the folders of VizWiz's archives below it, as one place to look for images."""
        parent = Path(self.images).expanduser()
        subfolders = [parent / name for name in FOLDERS]
        return ImageFolder([self.images, *subfolders])

    def rows(self) -> Iterator[QuestionRow | Skipped]:
        """Read the file, and yield each question in its order, or a `Skipped` for one that has to be left out.

        A question keeps its `answer_type`, if it has one.

        Raises:
            ConfigError: If the file cannot be read, or is no list of questions with images.
        """
        entries = read_json("annotations", self.annotations)
        has_questions = isinstance(entries, list) and any(_has_layout(entry) for entry in entries)
        if not has_questions:
            raise ConfigError(
                f"annotations={self.annotations}: not a VizWiz-VQA file: no list of {{image, question, answers}}"
            )

        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                entry = {}
            image = entry.get("image")
            names = (image,) if isinstance(image, str) else ()
            question = entry.get("question")
            answers = _answers(entry.get("answers"))
            row = question_row(f"[{number}]", image, names, image, question, answers)

            answer_type = entry.get("answer_type")
            if isinstance(row, QuestionRow) and isinstance(answer_type, str):
                row.question["answer_type"] = answer_type
            yield row


def _has_layout(entry: object) -> bool:
    """Return whether an entry has an image and a question, as each one of VizWiz-VQA has."""
    return isinstance(entry, dict) and {"image", "question"} <= set(entry)


def _answers(entries: object) -> list:
    """Return the text of each annotator's answer; an entry without one becomes None, which `question_row` refuses."""
    if not isinstance(entries, list):
        return []
    return [entry.get("answer") if isinstance(entry, dict) else None for entry in entries]
