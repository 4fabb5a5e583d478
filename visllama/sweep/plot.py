"""Draw `sweep.png`: the scores of a sweep's jobs over the values of each numeric key, with 95% intervals."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visllama.config.objective import Objective
from visllama.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_A_DECADE = 10
_WIDTH_IN = 5
"""Width of one panel, in inches."""


def numeric_keys(keys: Sequence[str], ranked: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values are numbers (no bools) in every job, and differ between at least two jobs.

    Args:
        keys: The keys that the sweep varies; the result has them in the same order.
        ranked: The rows of the jobs, as `SweepTable` holds them; `swept` of each row has the value of every key.
            Without rows the result is empty.
    """
    numeric = []
    for key in keys:
        values = [row["swept"][key] for row in ranked]
        if all(_is_number(value) for value in values) and len(set(values)) > 1:
            numeric.append(key)
    return numeric


def _is_number(value: object) -> bool:
    """Return whether a value is an int or a float, and no bool."""
    # In Python a bool is an int too.
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_log_axis(key: str, values: Sequence[float], log_keys: Collection[str]) -> bool:
    """Return whether the axis of a key should be logarithmic.

    The result is False if a value is 0 or less. Else it is True for a learning rate (`lr`, or a key below
    `lr_by_part`), for a key in `log_keys`, and if the greatest value is at least ten times the least.

    Args:
        key: The dotted key, for example "optim.lr".
        values: The values of the key in all jobs, at least one.
        log_keys: The keys that the search draws evenly on a logarithmic scale.
    """
    # There is no logarithm of zero or less.
    least = min(values)
    if least <= 0:
        return False
    if key in log_keys:
        return True

    _, _, last_name = key.rpartition(".")
    is_rate = last_name == "lr" or ".lr_by_part." in key
    is_wide = max(values) / least >= _A_DECADE
    return is_rate or is_wide


def plot_scores(
    keys: Sequence[str],
    ranked: Sequence[Mapping[str, Any]],
    objective: Objective,
    header: str,
    log_keys: Collection[str],
    path: Path,
) -> None:
    """Draw the scores of jobs over the values of each key, and write the picture as PNG, whole or not at all.

    There is one panel for each key, side by side; a star marks the best job. A line joins the jobs only if there is a
    single key.

    Args:
        keys: The keys to draw, as `numeric_keys` returns them: at least one.
        ranked: The rows of the jobs, as `SweepTable` holds them, the best first: at least one, all with a score.
        objective: The score that the jobs are ranked by: its name in each row, and the factor that it is drawn with.
        header: The label of the vertical axis.
        log_keys: The keys that the search draws evenly on a logarithmic scale.
        path: The path of the picture; a file that is there is replaced.

    Raises:
        WriteFailed: If the picture cannot be written.
    """
    # Imported here, since it takes long; without a window, since there is no display.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    num_keys = len(keys)
    size = (_WIDTH_IN * num_keys + 1, 4)
    # `squeeze=False` returns rows of panels also where there is a single panel.
    figure, panel_rows = plt.subplots(1, num_keys, figsize=size, layout="constrained", sharey=True, squeeze=False)
    panels = panel_rows[0]
    # A line between jobs that differ in more than one key would say what nobody measured.
    style = "o-" if num_keys == 1 else "o"
    for axes, key in zip(panels, keys, strict=True):
        values = _draw_panel(axes, key, ranked, objective, style)
        scale = "log" if is_log_axis(key, values, log_keys) else "linear"
        axes.set(xlabel=key, xscale=scale)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel=header)

    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _draw_panel(
    axes: Axes, key: str, ranked: Sequence[Mapping[str, Any]], objective: Objective, style: str
) -> list[float]:
    """Draw the scores over the values of one key, with a star for the best job, and return the values in their order.

    Args:
        axes: The panel that is drawn on.
        key: The key, whose values are numbers.
        ranked: The rows of the jobs, the best first.
        objective: The number that the jobs are ranked by.
        style: The format of the points, and of the line between them if there is one, as matplotlib writes it.
    """
    rows = sorted(ranked, key=lambda row: row["swept"][key])
    values = [row["swept"][key] for row in rows]
    scores = [objective.scale * row["scores"][objective.name] for row in rows]
    bars = error_bars(rows, objective)
    axes.errorbar(values, scores, yerr=bars, fmt=style, capsize=3, elinewidth=0.8)

    best = ranked[0]
    best_value = best["swept"][key]
    best_score = objective.scale * best["scores"][objective.name]
    axes.plot(best_value, best_score, "*", color="C1", markersize=14)
    return values


def error_bars(rows: Sequence[Mapping[str, Any]], objective: Objective) -> list[list[float]] | None:
    """Return how far each job's 95% interval reaches below and above its score, for matplotlib's `yerr`.

    Args:
        rows: The rows of the jobs, as `SweepTable` holds them, all with a score.
        objective: The score that the jobs are ranked by. The distances are multiplied by its `scale`.

    Returns:
        Two lists in the order of the rows: the distances below the scores, and the distances above them. A distance is
        0.0 for a job without an interval. The result is None if all distances are 0.0.
    """
    below = []
    above = []
    for row in rows:
        score = row["scores"][objective.name]
        intervals = row.get("intervals", {})
        low, high = intervals.get(objective.name, (score, score))
        # A percentile interval of few samples may lie beside the score.
        distance_below = max(0.0, score - low)
        distance_above = max(0.0, high - score)
        below.append(objective.scale * distance_below)
        above.append(objective.scale * distance_above)

    has_intervals = any(below) or any(above)
    return [below, above] if has_intervals else None
