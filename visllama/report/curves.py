"""`curves.png`: the losses of several runs over their steps, in one plot."""

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
_MOST_BYTES = 2**28
_MOST_IN_LEGEND = 20
_MOST_POINTS = 5000
_MOST_KEYS = 4
Points = list[tuple[int, float]]
"""The steps and values of one figure."""


def read_curves(path: Path) -> dict[str, Points]:
    """Return the losses that a run has logged, by their name; nothing where it has logged none.

    Args:
        path: The run's `metrics.csv`, which somebody else may have written: a row that is none is passed over.
    """
    curves: dict[str, Points] = {TRAIN_LOSS: [], VAL_LOSS: []}
    try:
        for row in csv.DictReader(io.StringIO(read_regular(path, _MOST_BYTES))):
            for name, points in curves.items():
                point = _point(row.get("step"), row.get(name))
                if point is not None:
                    points.append(point)
    except (OSError, ValueError, csv.Error):
        return {}
    return {name: points for name, points in curves.items() if points}


def _point(step: object, value: object) -> tuple[int, float] | None:
    try:
        point = int(str(step)), float(str(value))
    except ValueError:
        return None
    return point if math.isfinite(point[1]) else None


def run_labels(runs: Sequence[JudgedRun]) -> list[str]:
    """Return what sets each run apart: the values of the keys that they differ in, or its name where none do."""
    keys = sorted(differing_keys(runs), key=lambda key: key == "seed")[:_MOST_KEYS]  # the seed last
    found = []
    for run in runs:
        parts = zip(labels(keys), [value_at(run, key) for key in keys], strict=True)
        found.append(", ".join(f"{label}={value}" for label, value in parts))
    is_telling = len(set(found)) == len(runs)
    return found if is_telling else [f"{run.name} {label}".strip() for run, label in zip(runs, found, strict=True)]


def draw_curves(path: Path, runs: Sequence[JudgedRun]) -> bool:
    """Draw the losses of runs, a color each.

    Args:
        path: The picture.
        runs: The runs.

    Returns:
        Whether there was something to draw.
    """
    curves = [read_curves(run.folder / "metrics.csv") for run in runs]
    if not any(curves):
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharex=True)
    palette = plt.get_cmap("tab10" if len(runs) <= 10 else "turbo")
    texts = run_labels(runs)
    for axes, name, title in zip(panels, (VAL_LOSS, TRAIN_LOSS), ("Validation loss", "Training loss"), strict=True):
        for number, (run_curves, text) in enumerate(zip(curves, texts, strict=True)):
            color = palette(number if len(runs) <= 10 else number / (len(runs) - 1))
            marker = "o" if name == VAL_LOSS else None
            steps, values = _columns(run_curves, name)
            axes.plot(steps, values, color=color, marker=marker, markersize=3, label=_plain(text))
        axes.set(xlabel="step", ylabel="loss (nats a token)", title=title)
        axes.grid(alpha=0.3)
    handles, names = panels[0].get_legend_handles_labels()
    if len(names) > _MOST_IN_LEGEND:
        names[_MOST_IN_LEGEND - 1] = f"... and {len(names) - _MOST_IN_LEGEND + 1} more"
    figure.legend(
        handles[:_MOST_IN_LEGEND], names[:_MOST_IN_LEGEND], loc="outside lower center", ncols=2, fontsize="small"
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return True


def _columns(curves: Mapping[str, Points], name: str) -> tuple[list[int], list[float]]:
    points = sorted(curves.get(name, []))
    stride = -(-len(points) // _MOST_POINTS) or 1
    points = points[::stride]
    return [step for step, _ in points], [value for _, value in points]


def _plain(text: str) -> str:
    """Return text in which matplotlib reads no formula, and which is no label that it leaves out."""
    escaped = text.replace("\\", "/").replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped
