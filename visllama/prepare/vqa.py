"""`source=vqa`: VQAv2's official files, questions and annotations joined by their id; an image is a record."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visllama.errors import ConfigError
from visllama.prepare.coco import coco_folder, split_of_name
from visllama.prepare.raw import SPLITS, ImageFolder, RawData, RawRecord, RawSplit, is_id, listed, read_json, texts

_KINDS = ("question_type", "answer_type")
_SUBTYPES = {"train": "train2014", "val": "val2014", "test": "test2015"}


@dataclass(frozen=True)
class Vqa(RawData):
    """Questions about COCO's images, each with all its ten answers, and the one that most gave.

    Args:
        questions: `v2_OpenEnded_mscoco_train2014_questions.json` and its like.
        annotations: `v2_mscoco_train2014_annotations.json` and its like.
        images: The folder of images, or the one that holds `train2014` and its like.
    """

    questions: str
    annotations: str
    images: str

    FILES = ("questions", "annotations")

    def folder(self) -> ImageFolder:
        return coco_folder(self.images)

    def read(self) -> dict[str, RawSplit]:
        content = read_json("questions", self.questions)
        questions = listed("questions", self.questions, content, "questions", "VQA questions file")
        annotations = listed("annotations", self.annotations, read_json("annotations", self.annotations), "annotations",
                             "VQA annotations file")  # fmt: skip
        split, subtype = self._split(content)
        made = RawSplit()
        answers, faulty = self._answers(annotations, made)
        by_image: dict[int, list[dict]] = {}
        seen: set[int] = set()
        malformed: set[int] = set()
        for number, entry in enumerate(questions):
            entry = entry if isinstance(entry, dict) else {}
            image, question, text = entry.get("image_id"), entry.get("question_id"), texts([entry.get("question")])
            where = f"question {question}" if is_id(question) else f"questions[{number}]"
            if not is_id(image) or not is_id(question) or not text:
                made.skip(where, "id" if text else "no question", "no whole question_id, image_id and question")
                if is_id(question):
                    malformed.add(question)
            elif question in seen:
                made.skip(where, "duplicate", "it was there before")
            elif question in faulty:
                continue  # its annotation was counted: one fault
            elif question not in answers:
                made.skip(where, "no answer", f"{Path(self.annotations).name} has no answers to it")
            else:
                seen.add(question)
                by_image.setdefault(image, []).append({"question": text[0], **answers[question], "id": question})
        for question in answers.keys() - seen - malformed:
            made.skip(f"annotation {question}", "no question", f"{Path(self.questions).name} has none of this id")
        for image, asked in by_image.items():
            names = (f"COCO_{subtype}_{image:012d}.jpg", f"{image:012d}.jpg")  # as of 2014, and as of 2017
            made.add(RawRecord(f"{image:012d}", (names,), {"questions": asked, "image_id": image}, f"image {image}"))
        return {split: made}

    def _split(self, content: dict[str, Any]) -> tuple[str, str]:
        told = str(content.get("data_subtype") or "")
        named = {split_of_name(name) for name in (self.questions, self.annotations)} - {None}
        if len(named) > 1:
            raise ConfigError(
                f"questions={self.questions} annotations={self.annotations}: their names tell different splits: "
                f"give the two files of one"
            )
        split = self.split or next(iter(named), None) or split_of_name(told)
        if split is None:
            raise ConfigError(f"questions={self.questions}: its name tells no split: give split={', '.join(SPLITS)}")
        years = re.findall(r"(?:train|val|test)20\d\d", f"{Path(self.questions).stem} {told}")
        return split, years[0] if years else _SUBTYPES[split]

    def _answers(self, annotations: list, made: RawSplit) -> tuple[dict[int, dict[str, Any]], set[int]]:
        """Return the answers to each question, by its id, and the ids whose annotation is at fault."""
        found: dict[int, dict[str, Any]] = {}
        faulty: set[int] = set()
        for number, entry in enumerate(annotations):
            entry = entry if isinstance(entry, dict) else {}
            question, given = entry.get("question_id"), entry.get("answers")
            given = given if isinstance(given, list) else []
            said = texts(answer.get("answer") if isinstance(answer, dict) else None for answer in given)
            where = f"annotation {question}" if is_id(question) else f"annotations[{number}]"
            if not is_id(question):
                made.skip(where, "id", f"question_id {question!r} is no whole number")
            elif question in found:
                made.skip(where, "duplicate", "it was there before")
            elif not said or len(said) < len(given):
                made.skip(where, "no answer", f"{len(said)} of its {len(given)} answers are texts")
                faulty.add(question)
            else:
                # Of answers that as many gave, the first: `most_common` keeps the order in which they came.
                found[question] = {"answers": said, "answer": Counter(said).most_common(1)[0][0]}
                found[question] |= {kind: entry[kind] for kind in _KINDS if isinstance(entry.get(kind), str)}
        return found, faulty - found.keys()
