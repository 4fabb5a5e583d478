"""The scores of a run, as figures and as the rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCORE_COLUMNS = ("evaluation", "split", "n", "pictures", "metric", "score", "low", "high")
"""The columns of a table of scores; `low` and `high` are the ends of the 95% interval."""
_TRUE_PICTURES = "true"
"""The value of the column `pictures` where a score is no control's: each record was shown with its own picture."""


def flat_scores(evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return each score by `EVALUATION/METRIC`, and each score of a control by `EVALUATION/CONTROL/METRIC`.

    Args:
        evaluations: The scores, as `metrics.json` has them below `evaluations`.
    """
    scores = {}
    for name, evaluation in evaluations.items():
        for metric, value in evaluation["metrics"].items():
            scores[f"{name}/{metric}"] = value

        for control, values in evaluation.get("controls", {}).items():
            for metric, value in values.items():
                # A mapping holds the scores by type of answer, which are too many for a chart each.
                if not isinstance(value, Mapping):
                    scores[f"{name}/{control}/{metric}"] = value
    return scores


def score_rows(evaluations: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    """Return a row of `SCORE_COLUMNS` for each score, those of controls with the name of their pictures.

    Args:
        evaluations: The scores, as `metrics.json` has them below `evaluations`.
    """
    rows = []
    for name, evaluation in evaluations.items():
        about = [name, evaluation.get("split", ""), evaluation.get("n")]
        for metric, value in evaluation["metrics"].items():
            # Evaluations of older releases have no intervals.
            interval = evaluation.get("intervals", {}).get(metric)
            low, high = interval or (None, None)
            rows.append([*about, _TRUE_PICTURES, metric, value, low, high])

        for control, values in evaluation.get("controls", {}).items():
            for metric, value in values.items():
                if not isinstance(value, Mapping):
                    rows.append([*about, control, metric, value, None, None])
    return rows
