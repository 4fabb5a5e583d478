"""Write and read `scores.jsonl`: the scores of every image, by which systems are compared without new scoring."""

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
"""The metrics that follow from summed counts and are no mean over images, with the number of counts in a line."""


def _meteor_metrics(counts: np.ndarray) -> dict[str, CorpusMetric]:
    return {"METEOR": meteor_metric(counts)}


_METRICS_OF_COUNTS: dict[str, Callable[[np.ndarray], dict[str, CorpusMetric]]] = {
    "BLEU": bleu_metrics,
    "METEOR": _meteor_metrics,
    "CHAIR": chair.chair_metrics,
}
"""The functions that turn the counts of captions, shape `(images counts)`, into metrics, by the key of the counts."""


class ImageScores(NamedTuple):
    """The scores of one system on one evaluation, as `scores.jsonl` holds them: a row for each caption or answer.

    Attributes:
        ids: The id of each row as text, sorted: that of its image, or of its question.
        metrics: Each metric by its name, as a `CorpusMetric` with one row for each image, in the order of the images'
            ids as text. Questions about the same image share a row.
        per_row: The score of each row by the metric's name, in the order of `ids`. BLEU, METEOR and CHAIR are those of
            the row's caption alone; precision, recall, F1 and yes_share are missing.
        images: The id of each row's image as text, in the order of `ids`.
    """

    ids: list[str]
    metrics: dict[str, CorpusMetric]
    per_row: dict[str, np.ndarray]
    images: list[str]


def write_caption_scores(path: Path, ids: Mapping[str, int | str], scores: CaptionScores) -> None:
    """Write the scores of captions as `scores.jsonl`, with a line for each image in the order of `scores.ids`.

    A line holds `image_id`, the image's score for each metric that is a mean over images, and under `BLEU`, `METEOR`
    and `CHAIR` the counts of the image's caption, from which the metric is computed.

    Args:
        path: The file, which is replaced if it exists; its folder has to exist.
        ids: The id that is written for each image, a number or a text, by the id as text in `scores.ids`.
        scores: The scores of the captions.
    """
    columns: dict[str, np.ndarray] = {}
    for name, metric in scores.metrics.items():
        if name.startswith("BLEU"):
            # BLEU-1 to BLEU-4 follow from the same counts.
            columns["BLEU"] = metric.terms
        elif name == "CHAIRi":
            # CHAIRs follows from these counts too.
            columns["CHAIR"] = metric.terms
        elif name == "CHAIRs":
            continue
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
    """Write the scores of answers as `scores.jsonl`, with a line for each question in the order of `scores.ids`.

    A line holds `question_id`, `image_id`, the accuracies in [0, 1], and under `yes_no` the four counts of the question
    (see `yes_no_counts`) if the answers were read as yes or no.

    Args:
        path: The file, which is replaced if it exists; its folder has to exist.
        ids: The id that is written for each question, a number or a text, by the id as text in `scores.ids`.
        scores: The scores of the answers.
    """
    rows = []
    for number, (key, image) in enumerate(zip(scores.ids, scores.images, strict=True)):
        values = {name: float(column[number]) for name, column in scores.per_question.items()}
        if scores.yes_no is not None:
            values["yes_no"] = scores.yes_no[number].tolist()
        rows.append({"question_id": ids[key], "image_id": image, **values})
    _write(path, rows)


def _write(path: Path, rows: Sequence[Mapping]) -> None:
    lines = [json.dumps(row) + "\n" for row in rows]
    write_whole(path, "".join(lines))


def read_scores(path: Path) -> ImageScores:
    """Read a `scores.jsonl`, which somebody else may have written, and return its scores.

    Accuracies of answers are returned on the scale 0-100, although the file holds shares.

    Args:
        path: A file as `write_caption_scores` or `write_answer_scores` writes it.

    Raises:
        ConfigError: If the file cannot be read, a line holds no scores (the message has its number), or the lines do
            not hold the same scores.
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
            # Numbers and texts cannot be grouped together.
            row["image_id"] = str(row["image_id"])
            rows[key] = row
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigError(f"{path}: line {number}: no scores of an image ({error})") from error
    if not rows:
        raise ConfigError(f"{path}: holds no scores")

    # Sorted, so that the files of two systems have their images in the same order.
    ids = sorted(rows)
    try:
        return _of_rows(ids, [rows[key] for key in ids])
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: its lines do not hold the same scores ({error})") from error


def _of_rows(ids: list[str], rows: Sequence[Mapping]) -> ImageScores:
    """Return the scores of the rows of a file.

    Args:
        ids: The id of each row.
        rows: The rows.

    Raises:
        ValueError: If a score is no finite number, or a row has more or fewer counts than its metric.
        KeyError: If a row lacks a score that the first one has.
    """
    images = [row["image_id"] for row in rows]
    names = [name for name in rows[0] if name not in ("question_id", "image_id")]
    is_of_questions = "question_id" in rows[0]

    metrics: dict[str, CorpusMetric] = {}
    per_row: dict[str, np.ndarray] = {}
    for name in names:
        column = np.array([row[name] for row in rows], dtype=float)
        expected_shape = (_COUNTED[name],) if name in _COUNTED else ()
        if column.shape[1:] != expected_shape:
            raise ValueError(f"{name} has rows of shape {column.shape[1:]}")

        if name == "yes_no":
            counts = counts_of_images(column, images)
            metrics |= yes_no_metrics(counts)
        elif is_of_questions:
            # A file holds shares; accuracies are compared and shown on the scale 0-100.
            per_row[name] = 100 * column
            metrics[name] = grouped_metric(per_row[name], images)
        elif name in _METRICS_OF_COUNTS:
            for key, metric in _METRICS_OF_COUNTS[name](column).items():
                metrics[key] = metric
                per_row[key] = metric.per_image
        else:
            metrics[name] = mean_metric(column)
            per_row[name] = metrics[name].per_image

    for name, metric in metrics.items():
        if not np.isfinite(metric.terms).all():
            raise ValueError(f"{name} is no number in a line")
    return ImageScores(ids, metrics, per_row, images)
