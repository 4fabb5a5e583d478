"""Read and continue the file `metrics.csv`, which has one row for each step that was logged."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger

from visllama.files import read_regular, replacing, write_whole

_LOGGED = "logged.json"
"""A file in the run's folder: names of the figures that trackers already hold of steps that a resumed run repeats."""


def keep_metrics(logger: CSVLogger, folder: Path, before_step: int) -> None:
    """Rewrite `metrics.csv` with its rows before a step, and make the logger append to them.

    Call it before the logger's first use: by itself Lightning's logger deletes an earlier file. Nothing is done if the
    file is missing or has no such row.

    Args:
        logger: The logger that writes the file.
        folder: The folder of `metrics.csv`.
        before_step: The step of the checkpoint that a run resumes from. The rows of this step and later ones
            are dropped, as the resumed run writes them again.
    """
    path = folder / "metrics.csv"
    rows = [row for row in read_rows(path) if int(row["step"]) < before_step]
    if not rows:
        return

    # Sorted, as Lightning's logger writes its header.
    columns = sorted(rows[0])
    with replacing(path) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, fieldnames=columns)
            table.writeheader()
            table.writerows(rows)

        # The first use of `experiment` deletes the file: it has to come before the new one takes its place.
        logger.experiment.metrics_keys = columns


def logged_names(folder: Path, first_step: int) -> dict[int, set[str]]:
    """Return the names of the metrics that a stopped run logged since a checkpoint, and save them in `logged.json`.

    A tracker that cannot remove metrics must not be given the same ones again. The names are read from `metrics.csv`
    and, for a run that is stopped more than once, from the `logged.json` of an earlier call. Call this function before
    `keep_metrics`, which drops rows from `metrics.csv`.

    Args:
        folder: The run's folder, with both files; either may be missing.
        first_step: The step of the checkpoint that the run resumes from; names of this step are returned too.

    Returns:
        The names, such as "train/loss", in a set for each step; empty if there are none.
    """
    names_by_step: dict[int, set[str]] = defaultdict(set)
    for row in read_rows(folder / "metrics.csv"):
        names = names_by_step[int(row["step"])]
        for name, value in row.items():
            if value != "" and name != "step":
                names.add(name)

    # There is no such file yet where the run is stopped for the first time, and a damaged one is passed over.
    with suppress(OSError, ValueError, TypeError, AttributeError):
        kept = json.loads(read_regular(folder / _LOGGED))
        for step, kept_names in kept.items():
            names_by_step[int(step)].update(kept_names)

    # Saved even before anything is resumed, as the run may be killed at any moment.
    later = {step: names for step, names in names_by_step.items() if step >= first_step}
    if later:
        sorted_names = {step: sorted(names) for step, names in sorted(later.items())}
        content = json.dumps(sorted_names)
        write_whole(folder / _LOGGED, f"{content}\n")
    return later


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the complete rows of a `metrics.csv` in their order, each as its cells (texts) by column.

    A row is left out if it has no whole number as its step, or another number of cells than the header, as one has that
    was cut off while it was written. The list is empty if there is no such file.
    """
    if not path.is_file():
        return []

    # A damaged row is no reason to lose the others: neither bytes that are no UTF-8 nor the reader's errors are raised.
    rows: list[dict[str, str]] = []
    with open(path, newline="", encoding="utf-8", errors="replace") as file, suppress(csv.Error):
        rows += (row for row in csv.DictReader(file) if _is_whole(row))
    return rows


def _is_whole(row: Mapping) -> bool:
    """Return whether a row has a whole number as its step, and as many cells as the header."""
    # `csv.DictReader` puts cells too many under the key None, and None in the place of missing ones.
    has_all_cells = None not in row and None not in row.values()

    step = re.fullmatch(r"[0-9]{1,18}", str(row.get("step")))
    return has_all_cells and step is not None
