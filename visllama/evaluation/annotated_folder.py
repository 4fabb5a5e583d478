"""A folder of pictures with files of references, as a source of records: what `evaluation=files` judges."""

from __future__ import annotations

import hashlib
from collections import Counter
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
"""What stands before COCO's twelve digits in the name of a picture."""
_MOST_SHOWN = 5


class _Annotated(NamedTuple):
    """A picture's record without the picture, and the names that its file may have, the likeliest first."""

    record: dict[str, Any]
    names: tuple


class AnnotatedFolder(Source):
    """Pictures below a folder, each with its references; a picture is opened when it is asked for.

    A picture's file is the `file_name` that COCO's `images` hold. Where they hold none it is named by the image's id:
    `ID.jpg` (`.jpeg`, `.png`, `.webp`), an ID that is such a name itself, or, for a number, as COCO's pictures are
    (`COCO_val2014_000000000042.jpg`, `000000000042.jpg`).

    Args:
        split: What the files hold, for the report; `train` is refused.
        images: The folder, or the one that holds COCO's `val2014` and its like.
        references: Captions in COCO's annotation layout or as `{id: [captions]}`; with `questions` VQA's annotations.
        questions: VQA's questions file; None where pictures are captioned.

    Raises:
        ConfigError: If a file is laid out otherwise, an id comes twice, is unknown or lacks its references, or a
            picture is not there or lies outside of the folder, naming the first five.
    """

    def __init__(self, split: str, images: str, references: str, questions: str | None = None) -> None:
        require(split != "train", "split=train: files of references are judged on, and hold no training records")
        require(Path(images).expanduser().is_dir(), f"images={images}: no such folder")
        path = Path(references).expanduser()
        kind = "captions" if questions is None else "questions"
        annotated = _captioned(path) if questions is None else _asked(Path(questions).expanduser(), path)

        self._records = [each.record for each in annotated]
        self._files = _find(images, annotated)
        self.kinds = {kind: len(annotated)}
        self.item_counts = [len(record[kind]) for record in self._records]
        self.origin = f"{images} with {references}"
        sizes = [(Path(file).name, size) for file, size in self._files]
        self.fingerprint = hashlib.sha256(f"{self._records} {sizes}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        file, _ = self._files[index]
        try:
            content = read_image_file(file)
        except OSError as error:
            raise BadRecord("image", f"{file}: {error.strerror}") from error
        return {**self._records[index], "image": content}


def _captioned(path: Path) -> list[_Annotated]:
    """Return the images of a file of captions, in its order."""
    content = read_json(path)
    references = references_of(content, path)
    require(bool(references), f"references={path}: holds no captions")
    own_ids: dict[str, Any] = {}
    entries: dict[str, dict] = {}
    if isinstance(content.get("annotations"), list):
        own_ids = {str(row["image_id"]): row["image_id"] for row in content["annotations"]}
        entries = _images_of(content, path)
    if entries:
        refuse_ids(
            references.keys() - entries.keys(),
            f"images of references={path} have captions, and no entry in its 'images'",
        )
        refuse_ids(entries.keys() - references.keys(), f"images of references={path} have no caption")

    types = types_of(content)
    annotated = []
    for key, captions in references.items():
        record = {"key": key, "image_id": own_ids.get(key, key), "captions": captions}
        if key in types:
            record["type"] = types[key]
        file_name = entries.get(key, {}).get("file_name")
        names = _names_of_id(key) if file_name is None else names_of_both_years(file_name)
        annotated.append(_Annotated(record, names))
    return annotated


def _images_of(content: dict, path: Path) -> dict[str, dict]:
    """Return the entries of COCO's `images` by their id as text; none where the file has no such list."""
    listed = content.get("images")
    rows = [row for row in listed if isinstance(row, dict) and "id" in row] if isinstance(listed, list) else []
    counts = Counter(str(row["id"]) for row in rows)
    refuse_ids(
        (key for key, count in counts.items() if count > 1),
        f"ids stand more than once in 'images' of references={path}",
    )
    return {str(row["id"]): row for row in rows}


def _asked(questions_path: Path, annotations_path: Path) -> list[_Annotated]:
    """Return the images that VQA's files ask about, in the order of their first questions."""
    asked = read_questions(questions_path, annotations_path)
    rows = read_rows(questions_path, "questions", ("image_id", "question"))
    by_image: dict[str, _Annotated] = {}
    for key, question in asked.items():
        row = rows[key]
        if question.image not in by_image:
            record = {"key": question.image, "image_id": row["image_id"], "questions": []}
            by_image[question.image] = _Annotated(record, _names_of_id(question.image))
        entry = {"question": question.question, "answers": question.answers, "id": row["question_id"], **question.types}
        by_image[question.image].record["questions"].append(entry)
    return list(by_image.values())


def _names_of_id(image_id: str) -> tuple[str, ...]:
    """Return the names that the file of an image may have of which only the id is known."""
    if Path(image_id).suffix.lower() in _SUFFIXES:
        return (image_id,)
    names = [f"{image_id}{suffix}" for suffix in _SUFFIXES]
    if image_id.isascii() and image_id.isdecimal() and len(image_id) <= 12:
        names = [*(f"{prefix}{int(image_id):012d}.jpg" for prefix in _PREFIXES), *names]
    return tuple(names)


def _find(images: str, annotated: list[_Annotated]) -> list[tuple[str, int]]:
    """Return each picture's file and its bytes.

    Raises:
        ConfigError: If one is not there, or its name leads out of the folder.
    """
    folder = coco_folder(images)
    files, problems = [], []
    for record, names in annotated:
        found = folder.find(names)
        if not isinstance(found, Skipped):
            files.append(found)
        elif found.reason == "missing":
            problems.append(f"{record['key']!a}: none of {', '.join(map(ascii, names))}")
        else:
            problems.append(f"{record['key']!a}: {found.detail}")
    if problems:
        told = "".join(f"\n  {problem}" for problem in problems[:_MOST_SHOWN])
        raise ConfigError(
            f"images={images}: {len(problems)} of {len(annotated)} pictures are not to be had from it, or from "
            f"{', '.join(FOLDERS)} in it; the first:{told}"
        )
    return files
