"""What an offline run of wandb has written, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

# wandb has no public reader of its own files; tests alone go through this door.
from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore


class WandbArtifact(NamedTuple):
    """An artifact, and where each of its files lies until it is sent."""

    name: str
    kind: str
    client_id: str
    files: dict[str, Path]


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
    """The folder of the run's own files, such as pages."""
    artifacts: list[WandbArtifact]

    @property
    def own_artifacts(self) -> dict[str, set[str]]:
        """The files of each artifact by its name, those left out that wandb makes of each table."""
        return {each.name: set(each.files) for each in self.artifacts if each.kind != "run_table"}

    def table(self, row: dict[str, Any], name: str) -> list[dict[str, Any]]:
        """Return the rows of a table that a row of the history holds, each by its columns.

        A picture has the key `file`, the path of its file, beside what wandb says of it.
        """
        client_id, _, path = row[name]["artifact_path"].partition("://")[2].partition("/")
        (artifact,) = [each for each in self.artifacts if each.client_id == client_id]
        content = json.loads(artifact.files[path].read_text())
        rows = [dict(zip(content["columns"], values, strict=True)) for values in content["data"]]
        for cells in rows:
            for value in cells.values():
                if isinstance(value, dict):
                    value["file"] = artifact.files[value["path"]]
        return rows


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
        elif kind == "artifact":
            made = record.artifact
            files = {entry.path: Path(entry.local_path) for entry in made.manifest.contents}
            artifacts.append(WandbArtifact(made.name, made.type, made.client_id, files))
    about = run.run_id, run.display_name, run.run_group, list(run.tags)
    return WandbRun(*about, config, summary, rows, exit_code, path.parent / "files", artifacts)


def _records(path: Path):
    store = DataStore()
    store.open_for_scan(str(path))
    while (content := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        yield record


def _values(items) -> dict[str, Any]:
    """Return values by their names; what a table or a page is described by is a dictionary of its own."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = [item.key] if item.key else item.nested_key
        inner = found
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = json.loads(item.value_json)
    return found
