"""Read runs that are to be compared: their scores and their configurations, which somebody else may have written."""

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
    """A run that has been judged: the content of its `metrics.json`, and its configuration.

    Attributes:
        folder: The run's folder.
        name: The end of the folder's path, as long as it takes to differ from the other runs of the comparison.
        evaluations: The run's evaluations that have a score, by name, as `metrics.json` holds them.
        train: The figures of the run's training by name, for example "val/loss"; empty where it has none.
        provenance: The git revision, the command and the files that the figures were made with.
        config: The run's configuration, as mappings in mappings; empty where its folder holds none.
    """

    folder: Path
    name: str
    evaluations: dict[str, dict]
    train: dict[str, Any]
    provenance: dict[str, Any]
    config: dict[str, Any]

    @property
    def revision(self) -> str:
        """The first 8 digits of the git commit that made the run, with a + where files had been changed.

        "" where it is not known.
        """
        git = mapping(self.provenance, "git")
        commit = git.get("commit")
        # The file may be somebody else's: it can hold anything here.
        if not isinstance(commit, str):
            return ""

        text = printable(commit[:8])
        return f"{text}+" if git.get("dirty") else text

    def scores_file(self, evaluation: str) -> Path:
        """Return the path of the file with the scores of each image in an evaluation, whether it is there or not.

        Args:
            evaluation: The name of the evaluation in this run.
        """
        if evaluation == OF_FILES:
            return self.folder / "scores.jsonl"
        return self.folder / "evaluations" / evaluation / "scores.jsonl"


def read_runs(folders: Sequence[Path]) -> list[JudgedRun]:
    """Read `metrics.json` and the configuration of each of these folders, and return the runs in their order.

    Args:
        folders: The folders of the runs, as `find_folders` returns them.

    Raises:
        ConfigError: If a `metrics.json` is not there, cannot be read or is no JSON object, or if a configuration
            that is there cannot be read.
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

    # Scores can be compared without a configuration: a folder that somebody else has put together may hold none.
    config_files = [folder / file for file in _CONFIGS if (folder / file).is_file()]
    return JudgedRun(
        folder=folder,
        name=name,
        evaluations=judged(metrics),
        train=mapping(metrics, "train"),
        provenance=mapping(metrics, "provenance"),
        config=read_config(config_files[0]) if config_files else {},
    )


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each path: its last parts, as "lr/3": as many for each path as make all names differ.

    Signs that cannot be printed become escapes. Paths that are equal have the same name.
    """
    parts = [folder.absolute().parts for folder in folders]
    # A folder that is given twice cannot be told from itself, at any length.
    num_different = len(set(parts))

    length = 1
    while len({each[-length:] for each in parts}) < num_different:
        length += 1
    return [printable("/".join(each[-length:])) for each in parts]
