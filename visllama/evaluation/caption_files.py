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
    """Read a JSON file that anybody may have made.

    Raises:
        ConfigError: If it is none, or an id stands in it more than once.
    """
    return _parse(_read_file(path), path)


def _read_file(path: Path) -> str:
    try:
        return read_regular(path, _MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _parse(content: str, where: object) -> object:
    def no_duplicates(pairs: list[tuple[str, object]]) -> dict:
        keys = [key for key, _ in pairs]
        _refuse_doubled(keys, where)
        return dict(pairs)

    try:
        found = json.loads(content, object_pairs_hook=no_duplicates)
        if _HALF_CHARACTER.search(content):
            json.dumps(found, ensure_ascii=False).encode()  # the tokenizer could not read it either
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: no valid JSON: {error}") from error
    return found


def _refuse_doubled(ids: Sequence[str], where: object) -> None:
    if len(set(ids)) == len(ids):
        return
    doubled = sorted(key for key, count in Counter(ids).items() if count > 1)
    raise ConfigError(f"{where}: ids stand more than once: {', '.join(doubled[:5])}")


def read_results(path: Path) -> object:
    """Read predictions as a file holds them: JSON, or the `.jsonl` that an evaluation writes, a JSON object a line.

    Raises:
        ConfigError: If it is no valid JSON, naming the line.
    """
    if path.suffix.lower() != ".jsonl":
        return read_json(path)
    lines = enumerate(_read_file(path).split("\n"), start=1)
    return [_parse(line, f"{path}: line {number}") for number, line in lines if line.strip()]


def read_predictions(path: Path) -> dict[str, str]:
    """Read `[{"image_id", "caption"}]` (COCO results, or such rows as .jsonl) or `{id: caption}`.

    Ids may be numbers or strings.

    Raises:
        ConfigError: For another layout, or an id that comes twice.
    """
    content = read_results(path)
    if isinstance(content, list):
        rows = [
            (str(row["image_id"]), row["caption"])
            for row in content
            if isinstance(row, dict) and {"image_id", "caption"} <= set(row)
        ]
        if len(rows) != len(content):
            raise ConfigError(f"{path}: {len(content) - len(rows)} rows are not {{'image_id', 'caption'}}")
        ids = [key for key, _ in rows]
        _refuse_doubled(ids, path)
        content = dict(rows)
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ConfigError(f"{path}: expected COCO results [{{'image_id', 'caption'}}] or a mapping {{id: caption}}")
    return {str(key): value for key, value in content.items()}


def coco_results(ids: Sequence[int | str], captions: Sequence[str]) -> list[dict]:
    """Return captions in COCO's results layout, sorted by the images' ids: numbers first, in their order."""
    by_id = dict(zip(ids, captions, strict=True))
    return [{"image_id": image_id, "caption": by_id[image_id]} for image_id in _sorted_ids(ids)]


def coco_references(ids: Sequence[int | str], captions: Sequence[Sequence[str]]) -> dict:
    """Return references in COCO's annotation layout, as pycocotools and `read_references` read it."""
    by_id = dict(zip(ids, captions, strict=True))
    pairs = [(image_id, caption) for image_id in _sorted_ids(ids) for caption in by_id[image_id]]
    return {
        "info": {},
        "licenses": [],
        "images": [{"id": image_id} for image_id in _sorted_ids(ids)],
        "annotations": [
            {"id": number, "image_id": image_id, "caption": caption}
            for number, (image_id, caption) in enumerate(pairs, start=1)
        ],
    }


def _sorted_ids(ids: Sequence[int | str]) -> list[int | str]:
    numbers = sorted(image_id for image_id in ids if isinstance(image_id, int))
    return [*numbers, *sorted(image_id for image_id in ids if isinstance(image_id, str))]


def read_references(path: Path) -> dict[str, list[str]]:
    """Read a COCO captions annotation file or `{id: [captions]}`.

    Raises:
        ConfigError: For another layout.
    """
    return references_of(read_json(path), path)


def references_of(content: object, path: Path) -> dict[str, list[str]]:
    """Return the references that the content of a file holds, as `read_references` does."""
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        references: dict[str, list[str]] = {}
        for row in content["annotations"]:
            if not isinstance(row, dict) or "image_id" not in row or not isinstance(row.get("caption"), str):
                raise ConfigError(f"{path}: an annotation without image_id and caption: {str(row)[:80]}")
            references.setdefault(str(row["image_id"]), []).append(row["caption"])
        return references
    if not isinstance(content, dict) or not all(
        isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts) for texts in content.values()
    ):
        raise ConfigError(f"{path}: expected a COCO captions annotation file or a mapping {{id: [captions]}}")
    return content


def types_of(content: object) -> dict[str, str]:
    """Return the type of each image that has one: the `domain` of nocaps, or the `type` of COCO's `images`."""
    images = content.get("images") if isinstance(content, dict) else None
    rows = [row for row in images if isinstance(row, dict)] if isinstance(images, list) else []
    types = {str(row.get("id")): row.get("type", row.get("domain")) for row in rows}
    return {key: value for key, value in types.items() if isinstance(value, str) and value.strip()}
