"""Questions whose answers stand beside them, in one file; a record is an image with all its questions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from visllama.prepare.coco import split_of_name, unknown_split
from visllama.prepare.raw import RawData, RawRecord, RawSplit, Skipped, is_id, most_frequent, texts


class QuestionRow(NamedTuple):
    """A question with its answers, as a record holds it.

    Attributes:
        where: The question's place in the file, or its id.
        image: The image's own id.
        names: The names that the image's file may have, the likeliest first.
        question: The question, its answers and its id, as the record will hold them.
    """

    where: str
    image: str
    names: tuple[str, ...]
    question: dict[str, Any]


@dataclass(frozen=True)
class QuestionFile(RawData):
    """The keys of a dataset that has one file of questions; each dataset is a subclass that reads its own layout.

    Args:
        images: The folder of images.
        annotations: The file of questions with their answers.
    """

    images: str
    annotations: str

    FILES = ("annotations",)

    def rows(self) -> Iterator[QuestionRow | Skipped]:
        """Yield the questions in their order, and what has to be left out.

        Raises:
            ConfigError: If the file is not laid out as it should be.
        """
        raise NotImplementedError

    def read(self) -> dict[str, RawSplit]:
        split = self.split or split_of_name(self.annotations)
        if split is None:
            raise unknown_split("annotations", self.annotations)

        raw_split = RawSplit()
        by_image = self._rows_by_image(raw_split)
        for number, (image, rows) in enumerate(by_image.items()):
            names = (rows[0].names,)
            text = {"questions": [row.question for row in rows], "image_id": image}
            record = RawRecord(f"{number:08d}", names, text, f"image {image!a}")
            raw_split.add(record)
        return {split: raw_split}

    def _rows_by_image(self, raw_split: RawSplit) -> dict[str, list[QuestionRow]]:
        """Return the questions of each image; a question that is there twice is skipped the second time."""
        by_image: dict[str, list[QuestionRow]] = {}
        known_ids: set[str] = set()
        for row in self.rows():
            if isinstance(row, Skipped):
                raw_split.skip(*row)
                continue

            # An id that is a number, and the same id as a text, are one id.
            question_id = str(row.question["id"])
            if question_id in known_ids:
                raw_split.skip(row.where, "duplicate", "its id was there before")
                continue
            known_ids.add(question_id)
            by_image.setdefault(row.image, []).append(row)
        return by_image


def question_row(
    where: str,
    image: object,
    names: tuple[str, ...],
    question_id: object,
    question: object,
    answers: object,
) -> QuestionRow | Skipped:
    """Return a question with its answers, or why it is left out.

    An annotator who wrote nothing still counts: the score depends on how many of all gave the same answer.
    """
    question_texts = texts([question])
    all_answers = answers if isinstance(answers, list) else []
    answer_texts = texts(all_answers)

    if not isinstance(image, str) or not image.strip():
        return Skipped(where, "no image", f"it names none, but {image!r}")
    if not is_id(question_id) and not texts([question_id]):
        return Skipped(where, "id", f"id {question_id!r} is neither a whole number nor a text")
    if not question_texts:
        return Skipped(where, "no question", "no text asks anything")
    if not answer_texts or not all(isinstance(answer, str) for answer in all_answers):
        return Skipped(where, "no answer", f"{len(answer_texts)} of its {len(all_answers)} answers are texts")

    content = {
        "question": question_texts[0],
        "answers": [answer.strip() for answer in all_answers],
        "answer": most_frequent(answer_texts),
        "id": question_id,
    }
    return QuestionRow(where, image, names, content)
