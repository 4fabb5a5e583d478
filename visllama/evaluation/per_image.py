"""`scores.jsonl`: every metric of every image, from which two systems are compared later without scoring again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visllama.errors import ConfigError
from visllama.evaluation import bleu, chair, meteor
from visllama.evaluation.captions import CaptionScores, bleu_metrics, meteor_metric
from visllama.evaluation.statistics import CorpusMetric, grouped_metric, mean_metric
from visllama.evaluation.vqa import VqaScores
from visllama.evaluation.yes_no import NUM_COUNTS as NUM_YES_NO_COUNTS
from visllama.evaluation.yes_no import counts_of_images, yes_no_metrics
from visllama.files import read_regular, write_whole

_MOST_BYTES = 2**32
_COUNTED = {
    "CHAIR": chair.NUM_COUNTS,
    "BLEU": bleu.NUM_COUNTS,
    "METEOR": meteor.NUM_COUNTS,
    "yes_no": NUM_YES_NO_COUNTS,
}
"""Metrics that are no mean over images: a row holds the numbers that they count."""


_OF_COUNTS: dict[str, Callable[[np.ndarray], dict[str, CorpusMetric]]] = {
    "BLEU": bleu_metrics,
    "METEOR": lambda counts: {"METEOR": meteor_metric(counts)},
    "CHAIR": chair.chair_metrics,
}
"""The metrics of what is counted in each caption."""


class ImageScores(NamedTuple):
    """The metrics of one evaluation of one system.

    Attributes:
        ids: What the scores are of: images, or questions.
        metrics: Each metric over the images, which are in the order of their ids as text. Of questions, all on one
            image are one row.
        per_row: Each score by the id of its row: an image's, or a question's; BLEU and METEOR of that caption alone.
        images: The image of each row, as text.
    """

    ids: list[str]
    metrics: dict[str, CorpusMetric]
    per_row: dict[str, np.ndarray]
    images: list[str]


def write_caption_scores(path: Path, ids: Mapping[str, int | str], scores: CaptionScores) -> None:
    """Write a line for each image: its id, its scores, and what BLEU and METEOR count in it.

    Args:
        path: The file.
        ids: Each image's own id, by its id as text.
        scores: The scores.
    """
    columns: dict[str, np.ndarray] = {}
    for name, metric in scores.metrics.items():
        if name.startswith("BLEU"):
            columns["BLEU"] = metric.terms
        elif name == "CHAIRi":
            columns["CHAIR"] = metric.terms
        elif name == "CHAIRs":
            continue  # it follows from what CHAIRi counts
        elif name in _COUNTED:
            columns[name] = metric.terms
        else:
            columns[name] = metric.per_image
    rows = []
    for number, key in enumerate(scores.ids):
        values = {name: column[number].tolist() for name, column in columns.items()}
        rows.append({"image_id": ids[key], **values})
    _write(path, rows)


def write_answer_scores(path: Path, ids: Mapping[str, int | str], scores: VqaScores) -> None:
    """Write a line for each question: its id, its image, its accuracies in [0, 1], and what yes and no are counted as.

    Args:
        path: The file.
        ids: Each question's own id, by its id as text.
        scores: The scores.
    """
    rows = []
    for number, (key, image) in enumerate(zip(scores.ids, scores.images, strict=True)):
        values = {name: float(column[number]) for name, column in scores.per_question.items()}
        if scores.yes_no is not None:
            values["yes_no"] = scores.yes_no[number].tolist()
        rows.append({"question_id": ids[key], "image_id": image, **values})
    _write(path, rows)


def _write(path: Path, rows: Sequence[Mapping]) -> None:
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_scores(path: Path) -> ImageScores:
    """Read a `scores.jsonl`.

    Raises:
        ConfigError: If it is none, naming the line.
    """
    try:
        lines = read_regular(path, _MOST_BYTES).splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    rows: dict[str, dict] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            key = str(row["question_id"] if "question_id" in row else row["image_id"])
            if key in rows:
                raise ValueError(f"id {key} comes twice")
            row["image_id"] = str(row["image_id"])
            rows[key] = row
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigError(f"{path}: line {number}: no scores of an image ({error})") from error
    if not rows:
        raise ConfigError(f"{path}: holds no scores")
    ids = sorted(rows)
    try:
        return _of_rows(ids, [rows[key] for key in ids])
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: its lines do not hold the same scores ({error})") from error


def _of_rows(ids: list[str], rows: Sequence[Mapping]) -> ImageScores:
    names = [name for name in rows[0] if name not in ("question_id", "image_id")]
    metrics: dict[str, CorpusMetric] = {}
    per_row: dict[str, np.ndarray] = {}
    for name in names:
        column = np.array([row[name] for row in rows], dtype=float)
        if column.shape[1:] != ((_COUNTED[name],) if name in _COUNTED else ()):
            raise ValueError(f"{name} has rows of shape {column.shape[1:]}")
        if name == "yes_no":
            metrics |= yes_no_metrics(counts_of_images(column, [row["image_id"] for row in rows]))
            continue
        if "question_id" in rows[0]:
            metrics[name] = grouped_metric(100 * column, [row["image_id"] for row in rows])
            per_row[name] = 100 * column
            continue
        of_name = _OF_COUNTS[name](column) if name in _OF_COUNTS else {name: mean_metric(column)}
        metrics |= of_name
        per_row |= {key: metric.per_image for key, metric in of_name.items()}
    for name, metric in metrics.items():
        if not np.isfinite(metric.terms).all():
            raise ValueError(f"{name} is no number in a line")
    return ImageScores(ids, metrics, per_row, [row["image_id"] for row in rows])
