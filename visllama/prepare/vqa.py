"""`source=vqa` and `source=okvqa`: read a file of questions and a file of their answers, and join them by their ids."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visllama.errors import ConfigError
from visllama.prepare.coco import coco_folder, split_of_name, unknown_split
from visllama.prepare.raw import (
    ImageFolder,
    RawData,
    RawRecord,
    RawSplit,
    is_id,
    listed,
    most_frequent,
    read_json,
    texts,
)

_KINDS = ("question_type", "answer_type")
"""What a record keeps of each annotation."""
_SUBTYPES = {"train": "train2014", "val": "val2014", "test": "test2015"}


@dataclass(frozen=True)
class Vqa(RawData):
    """The reader of VQAv2 and OK-VQA: a record is a COCO image with all its questions, each with all its answers.

    Args:
        questions: The path of the questions, for example `v2_OpenEnded_mscoco_train2014_questions.json`.
        annotations: The path of the answers, for example `v2_mscoco_train2014_annotations.json`.
        images: The folder of images, or the one that holds `train2014` and the other folders of COCO's archives.
    """

    questions: str
    annotations: str
    images: str

    FILES = ("questions", "annotations")

    def folder(self) -> ImageFolder:
        """Return the folder `images` and the folders of COCO's archives below it, as one place to look for images."""
        return coco_folder(self.images)

    def read(self) -> dict[str, RawSplit]:
        """Read both files, and return one split of records, a record for each image, by the split's name.

        The split is the value of `split`, or the one that the names of the files or the content of the questions file
        show. A question without usable answers, and answers without a question, are left out.

        Raises:
            ConfigError: If a file cannot be read or is not laid out as it should be, or the files show no split or
                two different ones.
        """
        content = read_json("questions", self.questions)
        questions = listed("questions", self.questions, content, "questions", "VQA questions file")

        annotations_content = read_json("annotations", self.annotations)
        annotations = listed(
            "annotations", self.annotations, annotations_content, "annotations", "VQA annotations file"
        )
        split, subtype = self._split(content)

        raw_split = RawSplit()
        answers, faulty = self._answers(annotations, raw_split)
        by_image = self._join(questions, answers, faulty, raw_split)
        for image_id, image_questions in by_image.items():
            # As the archives of 2014 name it, and as those of 2017 do.
            key = f"{image_id:012d}"
            names = (f"COCO_{subtype}_{key}.jpg", f"{key}.jpg")
            text = {"questions": image_questions, "image_id": image_id}
            record = RawRecord(key, (names,), text, f"image {image_id}")
            raw_split.add(record)
        return {split: raw_split}

    def _join(
        self,
        questions: list,
        answers: dict[int, dict[str, Any]],
        faulty: set[int],
        raw_split: RawSplit,
    ) -> dict[int, list[dict]]:
        """Return the questions of each image, by its id, with their answers; questions without answers are skipped.

        Args:
            questions: The entries of the questions file.
            answers: The answers to each question, by its id.
            faulty: The ids of the questions whose annotation was skipped.
            raw_split: The split that counts what is skipped.
        """
        by_image: dict[int, list[dict]] = {}
        joined: set[int] = set()
        malformed: set[int] = set()
        annotations_name = Path(self.annotations).name
        for number, entry in enumerate(questions):
            if not isinstance(entry, dict):
                entry = {}
            image_id = entry.get("image_id")
            question_id = entry.get("question_id")
            text = texts([entry.get("question")])
            where = f"question {question_id}" if is_id(question_id) else f"questions[{number}]"

            is_whole = is_id(image_id) and is_id(question_id) and text
            if not is_whole:
                reason = "id" if text else "no question"
                raw_split.skip(where, reason, "no whole question_id, image_id and question")
                if is_id(question_id):
                    malformed.add(question_id)
            elif question_id in joined:
                raw_split.skip(where, "duplicate", "its id was there before")
            elif question_id in faulty:
                # Its annotation was counted already: this is one fault, not two.
                continue
            elif question_id not in answers:
                raw_split.skip(where, "no answer", f"{annotations_name} has no answers to it")
            else:
                joined.add(question_id)
                question = {"question": text[0], **answers[question_id], "id": question_id}
                by_image.setdefault(image_id, []).append(question)

        questions_name = Path(self.questions).name
        for question_id in answers.keys() - joined - malformed:
            where = f"annotation {question_id}"
            raw_split.skip(where, "no question", f"{questions_name} has none of this id")
        return by_image

    def _split(self, content: dict[str, Any]) -> tuple[str, str]:
        """Return our split, and the name that COCO gives its part, such as "train2014".

        Raises:
            ConfigError: If the files name no split, or different ones.
        """
        questions_split = split_of_name(self.questions)
        annotations_split = split_of_name(self.annotations)
        if questions_split and annotations_split and questions_split != annotations_split:
            raise ConfigError(
                f"questions={self.questions} annotations={self.annotations}: their names show different splits: "
                f"give the two files of one"
            )

        data_subtype = str(content.get("data_subtype") or "")
        split = self.split or questions_split or annotations_split or split_of_name(data_subtype)
        if split is None:
            raise unknown_split("questions", self.questions)

        # For example "train2014": the older images have it in their names.
        stem = Path(self.questions).stem
        subtypes = re.findall(r"(?:train|val|test)20\d\d", f"{stem} {data_subtype}")
        subtype = subtypes[0] if subtypes else _SUBTYPES[split]
        return split, subtype

    def _answers(self, annotations: list, raw_split: RawSplit) -> tuple[dict[int, dict[str, Any]], set[int]]:
        """Return the answers to each question, by its id, and the ids of the questions whose answers were skipped."""
        answers_by_id: dict[int, dict[str, Any]] = {}
        faulty: set[int] = set()
        for number, entry in enumerate(annotations):
            if not isinstance(entry, dict):
                entry = {}
            question_id = entry.get("question_id")
            answers = entry.get("answers")
            if not isinstance(answers, list):
                answers = []
            raw_texts = [answer.get("answer") for answer in answers if isinstance(answer, dict)]
            answer_texts = texts(raw_texts)
            where = f"annotation {question_id}" if is_id(question_id) else f"annotations[{number}]"

            if not is_id(question_id):
                raw_split.skip(where, "id", f"question_id {question_id!r} is no whole number")
            elif question_id in answers_by_id:
                raw_split.skip(where, "duplicate", "its id was there before")
            elif not answer_texts or len(answer_texts) < len(answers):
                # A score counts how many of all annotators agree, so that none of them may be left out.
                counts = f"{len(answer_texts)} of its {len(answers)} answers are texts"
                raw_split.skip(where, "no answer", counts)
                faulty.add(question_id)
            else:
                answers_by_id[question_id] = _content(entry, answer_texts)

        # A second annotation may have mended the first.
        still_faulty = faulty - answers_by_id.keys()
        return answers_by_id, still_faulty


def _content(entry: dict, answer_texts: list[str]) -> dict[str, Any]:
    """Return what a record keeps of an annotation: its answers, the most frequent one, and the kinds of its question.

    Args:
        entry: The annotation, as the file holds it.
        answer_texts: The texts of its answers, at least one.
    """
    content: dict[str, Any] = {"answers": answer_texts, "answer": most_frequent(answer_texts)}
    for kind in _KINDS:
        value = entry.get(kind)
        if isinstance(value, str):
            content[kind] = value
    return content
