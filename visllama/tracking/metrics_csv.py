"""`metrics.csv`: what was logged, row by row; a resumed run goes on in it."""

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
"""A file of the run's folder: which figures trackers were given of steps that a resumed run does again."""


def keep_metrics(logger: CSVLogger, folder: Path, before_step: int) -> None:
    """Keep the rows that a stopped run wrote to `metrics.csv`: Lightning's logger would begin it anew.

    Args:
        logger: It writes the file.
        folder: Where `metrics.csv` lies.
        before_step: The checkpoint's; later rows come again.
    """
    path = folder / "metrics.csv"
    rows = [row for row in read_rows(path) if int(row["step"]) < before_step]
    if not rows:
        return
    with replacing(path) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, fieldnames=sorted(rows[0]))
            table.writeheader()
            table.writerows(rows)
        logger.experiment.metrics_keys = sorted(rows[0])  # its first use deletes the file


def logged_names(folder: Path, first_step: int) -> dict[int, set[str]]:
    """Return the names of the figures that a stopped run has logged of a step and later ones, by their step.

    A tracker that only takes more, and gives nothing back, is not to be given them again. `metrics.csv` tells them,
    until `keep_metrics` drops them; so they are kept in a file, for a run that is stopped a second time on its way.

    Args:
        folder: The run's folder.
        first_step: The step of the checkpoint that the run goes on from.
    """
    found: dict[int, set[str]] = {}
    for row in read_rows(folder / "metrics.csv"):
        names = {name for name, value in row.items() if value != "" and name != "step"}
        found.setdefault(int(row["step"]), set()).update(names)
    with suppress(OSError, ValueError, TypeError, AttributeError):  # there is none, or it is damaged
        for step, names in json.loads(read_regular(folder / _LOGGED)).items():
            found.setdefault(int(step), set()).update(names)
    later = {step: names for step, names in found.items() if step >= first_step}
    if later:
        written = {step: sorted(names) for step, names in sorted(later.items())}
        write_whole(folder / _LOGGED, json.dumps(written) + "\n")
    return later


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the whole rows of a `metrics.csv`; what was cut off in the middle of one is left out."""
    if not path.is_file():
        return []
    rows: list[dict[str, str]] = []
    with open(path, newline="", encoding="utf-8", errors="replace") as file, suppress(csv.Error):
        rows += (row for row in csv.DictReader(file) if _is_whole(row))
    return rows


def _is_whole(row: Mapping) -> bool:
    is_step = re.fullmatch(r"[0-9]{1,18}", str(row.get("step")))
    return None not in row and None not in row.values() and is_step is not None
