"""`sweep.png`: the score over what was swept, with intervals."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from visllama.config.objective import Objective
from visllama.files import replacing

_A_DECADE = 10
_WIDTH_IN = 5
"""Width of one panel, in inches."""


def numeric_keys(keys: Sequence[str], ranked: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values in all jobs are numbers, of which there are several."""
    found = []
    for key in keys:
        values = [row["swept"][key] for row in ranked]
        are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if are_numbers and len(set(values)) > 1:
            found.append(key)
    return found


def is_log_axis(key: str, values: Sequence[float], log_keys: Collection[str]) -> bool:
    """Return whether a key's axis is logarithmic: of a rate, of a range that is, or of values a decade apart."""
    if min(values) <= 0:
        return False
    is_rate = key.rpartition(".")[2] == "lr" or ".lr_by_part." in key
    return is_rate or key in log_keys or max(values) / min(values) >= _A_DECADE


def plot_scores(
    keys: Sequence[str],
    ranked: Sequence[Mapping[str, Any]],
    objective: Objective,
    header: str,
    log_keys: Collection[str],
    path: Path,
) -> None:
    """Write the picture, whole or not at all: a panel for each key, the best job marked.

    Args:
        keys: The keys that were swept, whose values are numbers.
        ranked: The rows of the jobs, the best first.
        objective: What they are ranked by.
        header: The label of the scores.
        log_keys: Keys of a logarithmic range.
        path: The picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (_WIDTH_IN * len(keys) + 1, 4)
    figure, panels = plt.subplots(1, len(keys), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axes, key in zip(panels[0], keys, strict=True):
        rows = sorted(ranked, key=lambda row: row["swept"][key])
        values = [row["swept"][key] for row in rows]
        scores = [objective.scale * row["scores"][objective.name] for row in rows]
        # A line between jobs that differ in more than this key would say what nobody measured.
        style = "o-" if len(keys) == 1 else "o"
        axes.errorbar(values, scores, yerr=error_bars(rows, objective), fmt=style, capsize=3, elinewidth=0.8)
        best = ranked[0]
        axes.plot(best["swept"][key], objective.scale * best["scores"][objective.name], "*", color="C1", markersize=14)
        axes.set(xlabel=key, xscale="log" if is_log_axis(key, values, log_keys) else "linear")
        axes.grid(alpha=0.3)
    panels[0][0].set(ylabel=header)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def error_bars(rows: Sequence[Mapping[str, Any]], objective: Objective) -> list[list[float]] | None:
    """Return how far each job's 95% interval reaches below and above its score; None where nothing has one."""
    below, above = [], []
    for row in rows:
        score = row["scores"][objective.name]
        low, high = row.get("intervals", {}).get(objective.name, (score, score))
        # A percentile interval of few samples may lie beside the score.
        below.append(objective.scale * max(0.0, score - low))
        above.append(objective.scale * max(0.0, high - score))
    return [below, above] if any(below) or any(above) else None
