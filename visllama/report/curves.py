"""Draw `curves.png`: the training and validation losses of several runs over their steps, in one plot."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from visllama.config.objective import VAL_LOSS
from visllama.files import read_regular, replacing
from visllama.report.judged_run import JudgedRun
from visllama.report.settings import differing_keys, labels, value_at

TRAIN_LOSS = "train/loss"
"""The name of the training loss in a run's `metrics.csv`."""
_PANELS = {VAL_LOSS: "Validation loss", TRAIN_LOSS: "Training loss"}
"""The title of each loss's panel, from left to right."""
_MOST_BYTES = 2**28
_MOST_IN_LEGEND = 20
_MOST_POINTS = 5000
_MOST_KEYS = 4
_MOST_DISTINCT_COLORS = 10
Points = list[tuple[int, float]]
"""The points of one curve: pairs of a step and a value."""


def read_curves(path: Path) -> dict[str, Points]:
    """Read the losses that a run has logged.

    Args:
        path: The run's `metrics.csv`. Somebody else may have written it: a row without a finite number is passed over.

    Returns:
        The points of "train/loss" and "val/loss" by these names, in the order of the file. A loss without points is
        left out. The dictionary is empty if the file is not there or cannot be read.
    """
    curves: dict[str, Points] = {TRAIN_LOSS: [], VAL_LOSS: []}
    try:
        content = read_regular(path, _MOST_BYTES)
        rows = csv.DictReader(io.StringIO(content))
        for row in rows:
            for name, points in curves.items():
                point = _point(row.get("step"), row.get(name))
                if point is not None:
                    points.append(point)
    except (OSError, ValueError, csv.Error):
        return {}

    return {name: points for name, points in curves.items() if points}


def _point(step: object, value: object) -> tuple[int, float] | None:
    """Return a step and a value as numbers; None where one is missing, no number or not finite."""
    try:
        step_number = int(str(step))
        loss = float(str(value))
    except ValueError:
        return None
    return (step_number, loss) if math.isfinite(loss) else None


def run_labels(runs: Sequence[JudgedRun]) -> list[str]:
    """Return a different label for each run, for a legend: "lr=0.001, seed=1", for example.

    A label names the values of up to four keys in which the configurations differ. Where two runs would still have the
    same label, each label begins with the run's name.
    """
    # Only a few, so that a label fits into the legend. The seed comes last: it says least about a run.
    keys = sorted(differing_keys(runs), key=lambda key: key == "seed")
    keys = keys[:_MOST_KEYS]
    names_of_keys = labels(keys)

    texts = []
    for run in runs:
        parts = []
        for name, key in zip(names_of_keys, keys, strict=True):
            value = value_at(run, key)
            parts.append(f"{name}={value}")
        texts.append(", ".join(parts))

    # Labels that two runs share tell nobody which is which: their names come first then.
    different_texts = set(texts)
    if len(different_texts) == len(runs):
        return texts
    return [f"{run.name} {text}".strip() for run, text in zip(runs, texts, strict=True)]


def draw_curves(path: Path, runs: Sequence[JudgedRun]) -> bool:
    """Draw the losses that runs have logged as a PNG: validation loss on the left, training loss on the right.

    The losses are read from `metrics.csv` in each run's folder.

    Args:
        path: The path of the PNG; a file that is there is replaced.
        runs: The runs, each of which has a colour of its own.

    Returns:
        Whether the PNG was written: false where no run has logged a loss.

    Raises:
        WriteFailed: If the PNG cannot be written.
    """
    curves = [read_curves(run.folder / "metrics.csv") for run in runs]
    if not any(curves):
        return False

    # Imported here, because it takes a second that other verbs need not wait for.
    import matplotlib

    # Draws without a display, which a cluster's nodes do not have.
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharex=True)
    is_distinct = len(runs) <= _MOST_DISTINCT_COLORS
    palette = plt.get_cmap("tab10" if is_distinct else "turbo")
    texts = run_labels(runs)

    colors = []
    num_runs = len(runs)
    for number in range(num_runs):
        # `tab10` takes the number of a color, `turbo` a place from 0 to 1.
        place = number if is_distinct else number / (num_runs - 1)
        colors.append(palette(place))

    for axes, (name, title) in zip(panels, _PANELS.items(), strict=True):
        # A run has few validations: without marks, a run of one validation would show nothing.
        marker = "o" if name == VAL_LOSS else None
        for run_curves, text, color in zip(curves, texts, colors, strict=True):
            steps, values = _columns(run_curves, name)
            axes.plot(steps, values, color=color, marker=marker, markersize=3, label=_plain(text))
        axes.set(xlabel="step", ylabel="loss (nats a token)", title=title)
        axes.grid(alpha=0.3)

    handles, names = panels[0].get_legend_handles_labels()
    # A legend of hundreds of runs would leave no room for the plot.
    num_more = len(names) - _MOST_IN_LEGEND
    if num_more > 0:
        # The last line that there is room for counts the runs, and so takes the place of one of them.
        names[_MOST_IN_LEGEND - 1] = f"... and {num_more + 1} more"
    figure.legend(
        handles[:_MOST_IN_LEGEND],
        names[:_MOST_IN_LEGEND],
        loc="outside lower center",
        ncols=2,
        fontsize="small",
    )

    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return True


def _columns(curves: Mapping[str, Points], name: str) -> tuple[list[int], list[float]]:
    """Return the steps and the values of a curve, thinned out to what a plot can show."""
    points = sorted(curves.get(name, []))
    stride = math.ceil(len(points) / _MOST_POINTS) or 1
    points = points[::stride]

    steps = [step for step, _ in points]
    values = [value for _, value in points]
    return steps, values


def _plain(text: str) -> str:
    """Return text in which matplotlib reads no formula, and which is no label that it leaves out."""
    label = text.replace("\\", "/").replace("$", r"\$")
    if label.startswith("_"):
        return f" {label}"
    return label
