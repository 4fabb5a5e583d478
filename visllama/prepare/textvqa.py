"""`source=textvqa`: read TextVQA's file (`TextVQA_0.5.1_val.json`), questions about the texts in pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from visllama.prepare.questions import QuestionFile, QuestionRow, question_row
from visllama.prepare.raw import ImageFolder, Skipped, is_id, listed, read_json

FOLDERS = ("train_images", "test_images")
"""The folders that TextVQA's own archives unpack to; the pictures of validation lie among those of training."""


@dataclass(frozen=True)
class TextVqa(QuestionFile):
    """The reader of TextVQA: questions with ten answers each about pictures of Open Images.

    Args:
        images: The folder of images, or the one that holds `train_images` and `test_images`.
        annotations: The path of TextVQA's JSON file of a split, for example `TextVQA_0.5.1_val.json`.

    Reference:
        Singh et al. 2019, arXiv:1904.08920.
    """

    def folder(self) -> ImageFolder:
        """Return the folder `images` and those of TextVQA's archives below it, as one place to look for images."""
        parent = Path(self.images).expanduser()
        subfolders = [parent / name for name in FOLDERS]
        return ImageFolder([self.images, *subfolders])

    def rows(self) -> Iterator[QuestionRow | Skipped]:
        """Read the file, and yield each question in its order, or a `Skipped` for one that has to be left out.

        Raises:
            ConfigError: If the file cannot be read, or has no list `data`.
        """
        content = read_json("annotations", self.annotations)
        entries = listed("annotations", self.annotations, content, "data", "TextVQA file")
        for number, entry in enumerate(entries):
            # An entry of another type lacks everything: `question_row` says so.
            if not isinstance(entry, dict):
                entry = {}
            image = entry.get("image_id")
            question_id = entry.get("question_id")
            where = f"question {question_id}" if is_id(question_id) else f"data[{number}]"
            names = (f"{image}.jpg",)
            question = entry.get("question")
            answers = entry.get("answers")
            yield question_row(where, image, names, question_id, question, answers)
