"""Read and write captions, references and predictions as files: COCO's layouts, and JSON lines."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from visllama.errors import ConfigError
from visllama.files import read_regular

_MOST_BYTES = 2**32
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path) -> object:
    """Return the value that a JSON file holds; anybody may have made the file, so nothing in it is taken on trust.

    Args:
        path: The file.

    Raises:
        ConfigError: If the file cannot be read, is no JSON of at most 4 GiB, or a mapping in it has a key more than
            once.
    """
    return _parse(_read_file(path), path)


def _read_file(path: Path) -> str:
    """Return the text of a file that anybody may have made."""
    try:
        return read_regular(path, _MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _parse(content: str, where: object) -> object:
    """Return what a JSON text holds.

    Args:
        content: The text.
        where: The file, or the line of it, for the message.
    """

    def without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        # json keeps the last of several equal keys: a file with two captions of an image would lose one unnoticed.
        _refuse_duplicates([key for key, _ in pairs], where)
        return dict(pairs)

    try:
        parsed = json.loads(content, object_pairs_hook=without_duplicates)
        # Half of a surrogate pair is valid JSON, but no text: the tokenizer could not read it, and encoding it raises.
        if _HALF_CHARACTER.search(content):
            json.dumps(parsed, ensure_ascii=False).encode()
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: no valid JSON: {error}") from error
    return parsed


def _refuse_duplicates(ids: Sequence[str], where: object) -> None:
    """Refuse ids that come more than once; the message names the file or the line, and the first five ids."""
    if len(set(ids)) == len(ids):
        return

    counts = Counter(ids)
    duplicates = sorted(key for key, count in counts.items() if count > 1)
    first = ", ".join(duplicates[:5])
    raise ConfigError(f"{where}: ids stand more than once: {first}")


def read_results(path: Path) -> object:
    """Read a file of predictions without checking its layout, and return the JSON values in it.

    Args:
        path: A `.jsonl` file, which has one JSON value on each line (empty lines are skipped), or any other file, which
            is one JSON value as a whole.

    Returns:
        The list of the lines' values, or the value of the whole file.

    Raises:
        ConfigError: If the file cannot be read, or is no valid JSON; for a .jsonl file the message names the line.
    """
    if path.suffix.lower() != ".jsonl":
        return read_json(path)

    # Not splitlines(), which splits at U+2028 inside a caption too.
    lines = _read_file(path).split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append(_parse(line, f"{path}: line {number}"))
    return rows


def read_predictions(path: Path) -> dict[str, str]:
    """Read a file of captions, and return the caption of each image by the image's id as text.

    Args:
        path: A JSON file that holds `[{"image_id": 7, "caption": "a dog"}, ...]` (COCO's results) or `{id: caption}`,
            or a .jsonl file with such a row on each line. Ids may be numbers or strings; further keys are ignored.

    Raises:
        ConfigError: If the file cannot be read, has another layout, or holds an id more than once.
    """
    content = read_results(path)
    if isinstance(content, list):
        content = _captions_of_rows(content, path)

    if isinstance(content, dict):
        captions = {}
        for key, value in content.items():
            if isinstance(value, str):
                captions[str(key)] = value
        if len(captions) == len(content):
            return captions
    raise ConfigError(f"{path}: expected COCO results [{{'image_id', 'caption'}}] or a mapping {{id: caption}}")


def _captions_of_rows(rows: Sequence[object], path: Path) -> dict[str, object]:
    """Return the caption of each row of COCO results, by the image's id as text."""
    ids = []
    captions = []
    # Rows may have further keys, as the .jsonl files of an evaluation do.
    for row in rows:
        if isinstance(row, dict) and "image_id" in row and "caption" in row:
            image_id = str(row["image_id"])
            ids.append(image_id)
            captions.append(row["caption"])

    num_others = len(rows) - len(ids)
    if num_others > 0:
        raise ConfigError(f"{path}: {num_others} rows are not {{'image_id', 'caption'}}")
    _refuse_duplicates(ids, path)
    return dict(zip(ids, captions, strict=True))


def coco_results(ids: Sequence[int | str], captions: Sequence[str]) -> list[dict]:
    """Return captions as rows of COCO's results, `{"image_id", "caption"}`; nothing is written.

    Args:
        ids: The images' ids, all different. The rows are sorted by them: numbers first, then strings.
        captions: The caption of each image, in the order of `ids`.

    Raises:
        ValueError: If there are more or fewer captions than ids.
    """
    by_id = dict(zip(ids, captions, strict=True))
    rows = []
    for image_id in _sorted_ids(ids):
        rows.append({"image_id": image_id, "caption": by_id[image_id]})
    return rows


def coco_references(ids: Sequence[int | str], captions: Sequence[Sequence[str]]) -> dict:
    """Return references as the content of a COCO annotation file, as pycocotools and `read_references` read it.

    Args:
        ids: The images' ids, all different. Images and annotations are sorted by them: numbers first, then strings.
        captions: The references of each image, in the order of `ids`.

    Raises:
        ValueError: If there are more or fewer lists of references than ids.
    """
    by_id = dict(zip(ids, captions, strict=True))
    images = []
    annotations = []
    for image_id in _sorted_ids(ids):
        images.append({"id": image_id})
        for caption in by_id[image_id]:
            # COCO numbers its annotations; ours count from 1.
            annotation_id = len(annotations) + 1
            annotations.append({"id": annotation_id, "image_id": image_id, "caption": caption})

    return {"info": {}, "licenses": [], "images": images, "annotations": annotations}


def _sorted_ids(ids: Sequence[int | str]) -> list[int | str]:
    """Return sorted ids, the numbers before the strings, since the two cannot be compared with each other."""
    # Both sorted, so that a file does not depend on the order of the records.
    numbers = sorted(image_id for image_id in ids if isinstance(image_id, int))
    texts = sorted(image_id for image_id in ids if isinstance(image_id, str))
    return [*numbers, *texts]


def read_references(path: Path) -> dict[str, list[str]]:
    """Read a file of references, and return the references of each image by the image's id as text.

    Args:
        path: A COCO captions annotation file, or a JSON file that holds `{id: [captions]}`.

    Raises:
        ConfigError: If the file cannot be read, or has another layout.
    """
    return references_of(read_json(path), path)


def references_of(content: object, path: Path) -> dict[str, list[str]]:
    """Return the references of each image by the image's id as text, from the content of a file.

    Args:
        content: What `read_json` returns of a COCO captions annotation file, or `{id: [captions]}`. A mapping
            `{id: [captions]}` is returned unchanged.
        path: The file that the content comes from, for messages; it is not read.

    Raises:
        ConfigError: If the content has another layout.
    """
    expected = f"{path}: expected a COCO captions annotation file or a mapping {{id: [captions]}}"
    if not isinstance(content, dict):
        raise ConfigError(expected)

    annotations = content.get("annotations")
    if isinstance(annotations, list):
        return _captions_of_annotations(annotations, path)
    if not all(_are_captions(value) for value in content.values()):
        raise ConfigError(expected)
    return content


def _captions_of_annotations(annotations: Sequence[object], path: Path) -> dict[str, list[str]]:
    """Return the captions of each image of COCO's `annotations`, by the image's id as text.

    Args:
        annotations: The rows.
        path: The file of the rows, for the message.
    """
    references: dict[str, list[str]] = {}
    for row in annotations:
        fields = row if isinstance(row, dict) else {}
        caption = fields.get("caption")
        if "image_id" not in fields or not isinstance(caption, str):
            beginning = str(row)[:80]
            raise ConfigError(f"{path}: an annotation without image_id and caption: {beginning}")

        image_id = str(fields["image_id"])
        captions = references.setdefault(image_id, [])
        captions.append(caption)
    return references


def _are_captions(value: object) -> bool:
    """Return whether a value is a list of texts with at least one."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(text, str) for text in value)


def types_of(content: object) -> dict[str, str]:
    """Return the type of each image that has one, by the image's id as text, from the content of a file of references.

    A type is the text under `type` of an entry in COCO's `images`, or under `domain`, as nocaps has it.

    Args:
        content: What `read_json` returns of the file. The result is empty if it has no list of images.
    """
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        return {}

    values: dict[str, object] = {}
    for row in images:
        if isinstance(row, dict):
            image_id = str(row.get("id"))
            values[image_id] = row.get("type", row.get("domain"))

    # Only now: of several entries of an image the last one counts, also if it has no type.
    types = {}
    for image_id, value in values.items():
        if isinstance(value, str) and value.strip():
            types[image_id] = value
    return types
