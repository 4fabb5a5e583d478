"""The file `metrics.csv`: one row for each step that was logged. A resumed run continues the file."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger

from visllama.files import read_regular, replacing, write_whole

_LOGGED = "logged.json"
"""A file in the run's folder: the figures of steps that a resumed run repeats, which trackers hold already."""


def keep_metrics(logger: CSVLogger, folder: Path, before_step: int) -> None:
    """Keep the rows that a stopped run wrote to `metrics.csv`: Lightning's logger would begin it anew.

    Args:
        logger: The logger that writes the file.
        folder: The folder of `metrics.csv`.
        before_step: The checkpoint's step. Its row and later ones are dropped, as the resumed run writes them again.
    """
    path = folder / "metrics.csv"
    rows = [row for row in read_rows(path) if int(row["step"]) < before_step]
    if not rows:
        return

    columns = sorted(rows[0])
    with replacing(path) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, fieldnames=columns)
            table.writeheader()
            table.writerows(rows)

        # The first use of `experiment` deletes the file: it has to come before the new one takes its place.
        logger.experiment.metrics_keys = columns


def logged_names(folder: Path, first_step: int) -> dict[int, set[str]]:
    """Return the names of the figures that a stopped run has logged since a checkpoint, by their step.

    A tracker whose figures cannot be taken back must not be given them again. `metrics.csv` names them until
    `keep_metrics` drops their rows, so they are also kept in a file, for a run that is stopped a second time before it
    has caught up.

    Args:
        folder: The run's folder.
        first_step: The step of the checkpoint that the run goes on from; figures of this step are returned too.
    """
    names_by_step: dict[int, set[str]] = {}
    for row in read_rows(folder / "metrics.csv"):
        names = {name for name, value in row.items() if value != "" and name != "step"}
        names_by_step.setdefault(int(row["step"]), set()).update(names)

    # There is no such file yet where the run is stopped for the first time, and a damaged one is passed over.
    with suppress(OSError, ValueError, TypeError, AttributeError):
        kept = json.loads(read_regular(folder / _LOGGED))
        for step, names in kept.items():
            names_by_step.setdefault(int(step), set()).update(names)

    later = {step: names for step, names in names_by_step.items() if step >= first_step}
    if later:
        content = {step: sorted(names) for step, names in sorted(later.items())}
        write_whole(folder / _LOGGED, json.dumps(content) + "\n")
    return later


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the complete rows of a `metrics.csv`; a row that was cut off while it was written is left out."""
    if not path.is_file():
        return []

    rows: list[dict[str, str]] = []
    with open(path, newline="", encoding="utf-8", errors="replace") as file, suppress(csv.Error):
        rows += (row for row in csv.DictReader(file) if _is_whole(row))
    return rows


def _is_whole(row: Mapping) -> bool:
    """Return whether a row has a step, and as many cells as the header."""
    # `csv.DictReader` puts cells too many under the key None, and None in the place of missing ones.
    has_all_cells = None not in row and None not in row.values()
    step = re.fullmatch(r"[0-9]{1,18}", str(row.get("step")))
    return has_all_cells and step is not None
