"""A folder of pictures with files of references, as the source of records that `evaluation=files` judges on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from visllama.data.source import Source
from visllama.errors import BadRecord, ConfigError, refuse_ids, require
from visllama.evaluation.caption_files import read_json, references_of, types_of
from visllama.evaluation.vqa import read_questions, read_rows
from visllama.prepare.coco import FOLDERS, coco_folder, names_of_both_years
from visllama.prepare.raw import Skipped, read_image_file

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_PREFIXES = ("COCO_val2014_", "COCO_train2014_", "COCO_test2014_", "COCO_test2015_", "")
"""The prefixes of COCO's twelve digits in the name of a picture."""
_MOST_SHOWN = 5
"""The number of problems that a message names at most."""


class _Annotated(NamedTuple):
    """A picture that has references.

    Attributes:
        record: The record of the picture, without the picture.
        names: The names that the picture's file may have, the likeliest first.
    """

    record: dict[str, Any]
    names: tuple[str, ...]


class AnnotatedFolder(Source):
    """A source of records: the pictures in a folder, each with its references from a file.

    An index gives the record of a picture: `key`, `image_id`, `captions` or `questions`, and under `image` the content
    of the picture's file, which is read only then. A file that cannot be read raises a BadRecord.

    A picture's file is the `file_name` of the picture's entry in COCO's `images`. Without such an entry the file is
    named by the image's id: `ID.jpg` (`.jpeg`, `.png`, `.webp`), an ID that is such a name itself, or, if the id is a
    number, a name like those of COCO's pictures (`COCO_val2014_000000000042.jpg`, `000000000042.jpg`).

    Args:
        split: The name of the split that the files hold, for the report; `train` is refused.
        images: The folder of the pictures, or the folder that holds COCO's `val2014` and the like.
        references: The file of captions, in COCO's annotation layout or as `{id: [captions]}`. With `questions` it is
            VQA's file of annotations.
        questions: VQA's file of questions; None if pictures are captioned.

    Attributes:
        kinds: The number of pictures under one key: `captions`, or `questions` if questions are asked.
        item_counts: The number of captions or of questions of each picture.
        origin: The folder and the file of references, for the report.
        fingerprint: A hash of the references, and of the pictures' names and sizes.

    Raises:
        ConfigError: If `split` is `train`, the folder is not there, a file has another layout, an id comes more than
            once, is unknown or lacks its references, or a picture is not there or lies outside of the folder. The
            message names the first five.
    """

    def __init__(self, split: str, images: str, references: str, questions: str | None = None) -> None:
        require(split != "train", "split=train: files of references are judged on, and hold no training records")
        require(Path(images).expanduser().is_dir(), f"images={images}: no such folder")

        references_path = Path(references).expanduser()
        if questions is None:
            kind = "captions"
            annotated = _captioned(references_path)
        else:
            kind = "questions"
            annotated = _asked(Path(questions).expanduser(), references_path)

        self._records = [each.record for each in annotated]
        self._files = _find(images, annotated)
        self.kinds = {kind: len(annotated)}
        self.item_counts = [len(record[kind]) for record in self._records]
        self.origin = f"{images} with {references}"

        # Hashing the pictures themselves would read gigabytes: their names and sizes have to do.
        names_and_sizes = [(Path(file).name, size) for file, size in self._files]
        facts = f"{self._records} {names_and_sizes}"
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, _ = self._files[index]
        try:
            content = read_image_file(file)
        except OSError as error:
            raise BadRecord("image", f"{file}: {error.strerror}") from error
        return {**self._records[index], "image": content}


def _captioned(path: Path) -> list[_Annotated]:
    """Return the images of a file of captions, in the order of the file."""
    content = read_json(path)
    references = references_of(content, path)
    require(bool(references), f"references={path}: holds no captions")

    # The ids as the file has them, numbers or texts, under which predictions are written.
    original_ids: dict[str, Any] = {}
    entries: dict[str, dict] = {}
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        original_ids = {str(row["image_id"]): row["image_id"] for row in content["annotations"]}
        entries = _images_of(content, path)

    # A file without a list of images has nothing to compare.
    if entries:
        without_entry = references.keys() - entries.keys()
        refuse_ids(without_entry, f"images of references={path} have captions, and no entry in its 'images'")
        without_caption = entries.keys() - references.keys()
        refuse_ids(without_caption, f"images of references={path} have no caption")

    types = types_of(content)
    annotated = []
    for key, captions in references.items():
        record = {"key": key, "image_id": original_ids.get(key, key), "captions": captions}
        if key in types:
            record["type"] = types[key]

        entry = entries.get(key, {})
        file_name = entry.get("file_name")
        # COCO's pictures of 2014 and of 2017 are the same ones under two names.
        names = _names_of_id(key) if file_name is None else names_of_both_years(file_name)
        annotated.append(_Annotated(record, names))
    return annotated


def _images_of(content: Mapping, path: Path) -> dict[str, dict]:
    """Return the entries of COCO's `images` by the image's id as text; none if the file has no such list."""
    images = content.get("images")
    if not isinstance(images, list):
        return {}

    entries: dict[str, dict] = {}
    duplicates = set()
    for row in images:
        if not isinstance(row, dict) or "id" not in row:
            continue
        key = str(row["id"])
        if key in entries:
            duplicates.add(key)
        entries[key] = row

    refuse_ids(duplicates, f"ids stand more than once in 'images' of references={path}")
    return entries


def _asked(questions_path: Path, annotations_path: Path) -> list[_Annotated]:
    """Return the images that VQA's files ask about, in the order of their first questions."""
    questions = read_questions(questions_path, annotations_path)
    # Read again, because the questions hold their ids as text, and predictions are written under those of the file.
    rows = read_rows(questions_path, "questions", ("image_id", "question"))

    by_image: dict[str, _Annotated] = {}
    for key, asked in questions.items():
        row = rows[key]
        image = asked.image
        if image not in by_image:
            record = {"key": image, "image_id": row["image_id"], "questions": []}
            by_image[image] = _Annotated(record, _names_of_id(image))

        question = {
            "question": asked.question,
            "answers": asked.answers,
            "id": row["question_id"],
            **asked.types,
        }
        record = by_image[image].record
        record["questions"].append(question)
    return list(by_image.values())


def _names_of_id(image_id: str) -> tuple[str, ...]:
    """Return the names that the file of an image may have, the likeliest first, if only the image's id is known."""
    suffix = Path(image_id).suffix.lower()
    if suffix in _SUFFIXES:
        return (image_id,)

    names = [f"{image_id}{suffix}" for suffix in _SUFFIXES]
    # COCO's names have twelve digits.
    is_number = image_id.isascii() and image_id.isdecimal()
    if is_number and len(image_id) <= 12:
        number = int(image_id)
        coco_names = [f"{prefix}{number:012d}.jpg" for prefix in _PREFIXES]
        names = [*coco_names, *names]
    return tuple(names)


def _find(images: str, annotated: list[_Annotated]) -> list[tuple[str, int]]:
    """Return the path and the number of bytes of each picture's file.

    Args:
        images: The folder of the pictures.
        annotated: The pictures.

    Raises:
        ConfigError: If a picture is not there, cannot be read, or its name leads out of the folder.
    """
    folder = coco_folder(images)
    files = []
    problems = []
    for record, names in annotated:
        # All problems are collected, so that a user can mend them at once.
        file_or_reason = folder.find(names)
        if not isinstance(file_or_reason, Skipped):
            files.append(file_or_reason)
            continue

        problem = file_or_reason.detail
        if file_or_reason.reason == "missing":
            tried = ", ".join(ascii(name) for name in names)
            problem = f"none of {tried}"
        problems.append(f"{record['key']!a}: {problem}")

    if problems:
        first = "".join(f"\n  {problem}" for problem in problems[:_MOST_SHOWN])
        folders = ", ".join(FOLDERS)
        raise ConfigError(
            f"images={images}: {len(problems)} of {len(annotated)} pictures are not to be had from it, or from "
            f"{folders} in it; the first:{first}"
        )
    return files
