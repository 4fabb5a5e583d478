"""What an offline run of wandb has written, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

# wandb has no public reader of its own files; tests alone go through this door.
from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore


class WandbRun(NamedTuple):
    """A run, as its file tells.

    Attributes:
        exit_code: The code with which it was finished; None where it was not.
        rows: What was logged, each with the run's step.
    """

    run_id: str
    name: str
    group: str
    tags: list[str]
    config: dict[str, Any]
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    exit_code: int | None
    files: Path
    """The folder of the run's own files: tables, pictures and pages."""
    artifacts: list[str]
    """Names of the artifacts that the run has made by itself, those of its tables left out."""

    def table(self, row: dict[str, Any], name: str) -> list[dict[str, Any]]:
        """Return the rows of a table that a row of the history holds, each by its columns."""
        content = json.loads((self.files / row[name]["path"]).read_text())
        return [dict(zip(content["columns"], values, strict=True)) for values in content["data"]]


def read_wandb_run(folder: Path) -> WandbRun:
    """Read the one run that lies below a run folder's `wandb/`."""
    (run,) = read_wandb_runs(folder)
    return run


def read_wandb_runs(folder: Path) -> list[WandbRun]:
    """Read all that lies below a run folder's `wandb/`, in the order of its time; parts of one run have one id."""
    return [_read(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def _read(path: Path) -> WandbRun:
    config, summary, rows = {}, {}, []
    run, exit_code, artifacts = None, None, []
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            config |= _values(record.run.config.update)
        elif kind == "config":
            config |= _values(record.config.update)
        elif kind == "summary":
            summary |= _values(record.summary.update)
        elif kind == "history":
            rows.append(_values(record.history.item))
        elif kind == "exit":
            exit_code = record.exit.exit_code
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            artifacts.append(record.request.log_artifact.artifact.name)
        elif kind == "artifact":
            artifacts.append(record.artifact.name)
    files = path.parent / "files"
    own = [name for name in artifacts if not name.startswith("run-")]
    about = run.run_id, run.display_name, run.run_group, list(run.tags)
    return WandbRun(*about, config, summary, rows, exit_code, files, own)


def _records(path: Path):
    store = DataStore()
    store.open_for_scan(str(path))
    while (content := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        yield record


def _values(items) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
