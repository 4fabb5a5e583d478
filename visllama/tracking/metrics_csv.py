"""`metrics.csv`: what was logged, row by row; a resumed run goes on in it."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger

from visllama.files import replacing


def keep_metrics(logger: CSVLogger, folder: Path, before_step: int) -> None:
    """Keep the rows that a stopped run wrote to `metrics.csv`: Lightning's logger would begin it anew.

    Args:
        logger: It writes the file.
        folder: Where `metrics.csv` lies.
        before_step: The checkpoint's; later rows come again.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        return
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        rows = []
        with suppress(csv.Error):  # as of a cell without an end: the rows before it stay
            rows += (row for row in csv.DictReader(file) if _is_whole(row) and int(row["step"]) < before_step)
    if not rows:
        return
    with replacing(path) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, fieldnames=sorted(rows[0]))
            table.writeheader()
            table.writerows(rows)
        logger.experiment.metrics_keys = sorted(rows[0])  # its first use deletes the file


def _is_whole(row: Mapping) -> bool:
    is_step = re.fullmatch(r"[0-9]{1,18}", str(row.get("step")))
    return None not in row and None not in row.values() and is_step is not None
