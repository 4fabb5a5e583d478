"""What a run has written for trackio, read back from its database."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple


class TrackioRun(NamedTuple):
    """A run, as trackio's database holds it.

    Attributes:
        rows: What was logged, in its order: the step, and the values by their names.
        artifacts: The names of the artifacts that the run has made.
    """

    name: str
    config: dict[str, Any]
    rows: list[tuple[int, dict[str, Any]]]
    artifacts: list[str]

    @property
    def group(self) -> str | None:
        return self.config["_Group"]

    def values(self, name: str) -> list[tuple[int, Any]]:
        """Return the steps and values of one figure, in their order."""
        return [(step, values[name]) for step, values in self.rows if name in values]


def read_trackio_run(folder: Path) -> TrackioRun:
    """Read the one run of the one project in a folder of trackio's; it has no public reader of logged values."""
    (path,) = folder.glob("*.db")
    with closing(sqlite3.connect(path)) as database:
        ((name, config),) = database.execute("select run_name, config from configs").fetchall()
        rows = database.execute("select run_id, step, metrics from metrics order by id").fetchall()
        artifacts = database.execute("select name from artifacts").fetchall()
    assert len({run_id for run_id, _, _ in rows}) == 1, "one run"
    logged = [(step, json.loads(metrics)) for _, step, metrics in rows]
    return TrackioRun(name, json.loads(config), logged, [name for (name,) in artifacts])
