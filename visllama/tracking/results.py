"""Turn the scores of a run's `metrics.json` into named figures and into the rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SCORE_COLUMNS = ("evaluation", "split", "n", "pictures", "metric", "score", "low", "high")
"""The columns of a table of scores: `n` is the number of records, `low` and `high` are the ends of the 95% interval."""
_TRUE_PICTURES = "true"
"""The value of the column `pictures` where a score is no control's: each record was shown with its own picture."""


def flat_scores(evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return all scores of a run in one flat mapping, unchanged.

    A score has the name `EVALUATION/METRIC`. A score of a control (the evaluation repeated without the right pictures)
    has the name `EVALUATION/CONTROL/METRIC`. Scores by type of question or answer are left out.

    Args:
        evaluations: The content of `metrics.json` at its key `evaluations`, by the names of the evaluations.
    """
    scores = {}
    for name, evaluation in evaluations.items():
        for metric, value in evaluation["metrics"].items():
            scores[f"{name}/{metric}"] = value

        for control, metric, value in _control_scores(evaluation):
            scores[f"{name}/{control}/{metric}"] = value

    return scores


def _control_scores(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Yield the control, the metric and the value of each score of the controls of an evaluation."""
    controls = evaluation.get("controls", {})
    for control, scores in controls.items():
        for metric, value in scores.items():
            # A mapping holds the scores by type of answer, which are too many for a chart or a row each.
            if not isinstance(value, Mapping):
                yield control, metric, value


def score_rows(evaluations: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    """Return a table row for each score of a run, with a value for each of `SCORE_COLUMNS`.

    These are: evaluation, split, n (the number of records), pictures, metric, score, and low and high (the ends of the
    95% interval). The rows of an evaluation come in the order of its metrics, then those of its controls (the
    evaluation repeated without the right pictures). The column `pictures` holds "true" for a score with the right
    pictures, else the name of the control. Where there is no interval, `low` and `high` are None, as for all controls.

    Args:
        evaluations: The content of `metrics.json` at its key `evaluations`, by the names of the evaluations.
    """
    rows = []
    for name, evaluation in evaluations.items():
        about = [name, evaluation.get("split", ""), evaluation.get("n")]

        for metric, value in evaluation["metrics"].items():
            # Evaluations of older releases have no intervals.
            intervals = evaluation.get("intervals", {})
            interval = intervals.get(metric)
            low, high = interval or (None, None)
            rows.append([*about, _TRUE_PICTURES, metric, value, low, high])

        for control, metric, value in _control_scores(evaluation):
            rows.append([*about, control, metric, value, None, None])

    return rows
