"""Questions whose answers stand beside them, in one file: an image with all that is asked about it is a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from visllama.errors import ConfigError
from visllama.prepare.coco import split_of_name
from visllama.prepare.raw import SPLITS, RawData, RawRecord, RawSplit, Skipped, is_id, texts


class QuestionRow(NamedTuple):
    """A question with its answers, as a record holds it.

    Attributes:
        where: Its place in the file, or its id.
        image: The image's own id.
        names: The names that the image's file may have, the likeliest first.
        question: The question, its answers and its id.
    """

    where: str
    image: str
    names: tuple[str, ...]
    question: dict[str, Any]


@dataclass(frozen=True)
class QuestionFile(RawData):
    """The keys of a data set that has one file of questions; each is a class that reads its own layout.

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
            raise ConfigError(
                f"annotations={self.annotations}: its name tells no split: give split={', '.join(SPLITS)}"
            )
        made = RawSplit()
        by_image: dict[str, list[QuestionRow]] = {}
        seen: set[str] = set()
        for row in self.rows():
            if isinstance(row, Skipped):
                made.skip(*row)
                continue
            own_id = str(row.question["id"])
            if own_id in seen:
                made.skip(row.where, "duplicate", "it was there before")
                continue
            seen.add(own_id)
            by_image.setdefault(row.image, []).append(row)
        for number, (image, rows) in enumerate(by_image.items()):
            text = {"questions": [row.question for row in rows], "image_id": image}
            made.add(RawRecord(f"{number:08d}", (rows[0].names,), text, f"image {image!a}"))
        return {split: made}


def question_row(
    where: str, image: object, names: tuple[str, ...], question_id: object, question: object, answers: object
) -> QuestionRow | Skipped:
    """Return a question with its answers, or why it is left out.

    An annotator who wrote nothing stays one of them: a score counts how many said the same.
    """
    asked = texts([question])
    given = answers if isinstance(answers, list) else []
    said = texts(given)
    if not isinstance(image, str) or not image.strip():
        return Skipped(where, "no image", f"it names none, but {image!r}")
    if not is_id(question_id) and not texts([question_id]):
        return Skipped(where, "id", f"id {question_id!r} is neither a whole number nor a text")
    if not asked:
        return Skipped(where, "no question", "no text asks anything")
    if not said or not all(isinstance(answer, str) for answer in given):
        return Skipped(where, "no answer", f"{len(said)} of its {len(given)} answers are texts")
    most_said = Counter(said).most_common(1)[0][0]  # of answers that as many gave, the first
    kept = {"question": asked[0], "answers": [answer.strip() for answer in given], "answer": most_said}
    return QuestionRow(where, image, names, {**kept, "id": question_id})
