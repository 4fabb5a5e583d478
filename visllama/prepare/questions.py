"""What is common to datasets with one file of questions and answers; a record is an image with all its questions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from visllama.prepare.coco import split_of_name, unknown_split
from visllama.prepare.raw import RawData, RawRecord, RawSplit, Skipped, is_id, most_frequent, texts


class QuestionRow(NamedTuple):
    """A question with its answers, and the image that it is about.

    Attributes:
        where: Where the question stands in the file, for messages: a line, a number or its id.
        image: The image's name or id in the dataset; questions of the same image become one record.
        names: The paths that the image's file may have below the image folder, the likeliest first.
        question: `question`, `answers`, `answer` and `id`, as the record will hold them; a subclass may add more.
    """

    where: str
    image: str
    names: tuple[str, ...]
    question: dict[str, Any]


@dataclass(frozen=True)
class QuestionFile(RawData):
    """The reader of a dataset that has one file of questions; each dataset is a subclass, which implements `rows`.

    Args:
        images: The folder of images.
        annotations: The path of the file of questions with their answers.
    """

    images: str
    annotations: str

    FILES = ("annotations",)

    def rows(self) -> Iterator[QuestionRow | Skipped]:
        """Read the file, and yield each question in its order, or a `Skipped` for one that has to be left out.

        Raises:
            ConfigError: If the file cannot be read, or is not laid out as it should be.
        """
        raise NotImplementedError

    def read(self) -> dict[str, RawSplit]:
        """Read the file of questions, and return one split of records, a record for each image, by the split's name.

        The split is the value of `split`, or the one that the name of the file contains.

        Raises:
            ConfigError: If neither names a split, the file cannot be read, or it is not laid out as it should be.
        """
        split = self.split or split_of_name(self.annotations)
        if split is None:
            raise unknown_split("annotations", self.annotations)

        raw_split = RawSplit()
        by_image = self._rows_by_image(raw_split)
        for number, (image, rows) in enumerate(by_image.items()):
            key = f"{number:08d}"
            names = rows[0].names
            questions = [row.question for row in rows]
            text = {"questions": questions, "image_id": image}
            record = RawRecord(key, (names,), text, f"image {image!a}")
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
    """Check the parts of one entry of a file, and return them as a question with its answers, or why it is left out.

    An empty answer is kept among the others: a score depends on how many of all annotators gave the same answer.

    Args:
        where: Where the entry stands in the file, for messages.
        image: The image's name or id in the dataset, which has to be a text.
        names: The paths that the image's file may have below the image folder, the likeliest first.
        question_id: The id of the question: a whole number below 10^12, or a text.
        question: The text of the question.
        answers: The list of all answers, which have to be texts, at least one of them not empty.

    Returns:
        The question, whose `answer` is the most frequent answer that is not empty; or a `Skipped` if the image, the id,
        the text or the answers are missing or of another type.
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
    are_texts = all(isinstance(answer, str) for answer in all_answers)
    if not answer_texts or not are_texts:
        return Skipped(where, "no answer", f"{len(answer_texts)} of its {len(all_answers)} answers are texts")

    content = {
        "question": question_texts[0],
        "answers": [answer.strip() for answer in all_answers],
        "answer": most_frequent(answer_texts),
        "id": question_id,
    }
    return QuestionRow(where, image, names, content)
