"""A run as it is compared: its scores and its configuration, read as data that somebody else may have written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visllama.config.replay import read_config
from visllama.console import printable
from visllama.errors import ConfigError
from visllama.evaluation.metrics_file import METRICS_FILE, judged, mapping, read_metrics

OF_FILES = "predictions"
"""The name under which `evaluate predictions=FILE` writes its one evaluation."""
_CONFIGS = ("config.yaml", ".hydra/config.yaml")
"""Where a run's configuration lies: `train` writes the first, and Hydra the second of every verb."""


@dataclass(frozen=True)
class JudgedRun:
    """A run that has been judged.

    Attributes:
        folder: Its folder.
        name: The end of the folder's path that no other of the compared runs has.
        evaluations: Its evaluations that have a score, by name.
        train: The figures of its training.
        provenance: What made its figures.
        config: Its configuration; empty where it has none.
    """

    folder: Path
    name: str
    evaluations: dict[str, dict]
    train: dict[str, Any]
    provenance: dict[str, Any]
    config: dict[str, Any]

    @property
    def revision(self) -> str:
        """The git revision that it was made by, short, with a + where files had been changed; "" if not known."""
        git = mapping(self.provenance, "git")
        commit = git.get("commit")
        if not isinstance(commit, str):
            return ""
        return printable(commit[:8]) + ("+" if git.get("dirty") else "")

    def scores_file(self, evaluation: str) -> Path:
        """Return the file that holds the scores of each image in an evaluation."""
        if evaluation == OF_FILES:
            return self.folder / "scores.jsonl"
        return self.folder / "evaluations" / evaluation / "scores.jsonl"


def read_runs(folders: Sequence[Path]) -> list[JudgedRun]:
    """Read the runs that lie in these folders.

    Raises:
        ConfigError: If one holds no `metrics.json`, or one that no run wrote.
    """
    names = short_names(folders)
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read(folder: Path, name: str) -> JudgedRun:
    try:
        metrics = read_metrics(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"runs: {printable(folder / METRICS_FILE)} cannot be read ({printable(error)}): give the folder of a run "
            f"that has ended"
        ) from error
    written = [folder / file for file in _CONFIGS if (folder / file).is_file()]
    config = read_config(written[0]) if written else {}
    return JudgedRun(folder, name, judged(metrics), mapping(metrics, "train"), mapping(metrics, "provenance"), config)


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of these paths, of the same length, that tell them apart, as they may be printed."""
    parts = [folder.absolute().parts for folder in folders]
    longest = max(len(each) for each in parts)
    for length in range(1, longest + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [printable(name) for name in names]
