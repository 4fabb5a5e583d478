"""Find the run folders that `runs=` means: those that are named, all that a pattern matches, the jobs of a sweep."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from visllama.console import printable
from visllama.errors import ConfigError, require
from visllama.evaluation.metrics_file import METRICS_FILE

_PATTERN = re.compile(r"[*?\[]")
_MOST_RUNS = 10_000


def find_folders(words: Sequence[str]) -> list[Path]:
    """Find the folders of runs that have ended, in the order in which they are named.

    The folder of a run that has ended holds a `metrics.json`. In place of the folder of a sweep (one training over
    several settings), the folders of its jobs that have ended are returned. The runs of a pattern or a sweep are sorted
    by name, numbers by their value. A pattern leaves out folders without a run, and runs that an earlier word has
    named; a folder that is named twice without a pattern is returned twice.

    Args:
        words: Paths of runs or of sweeps, and patterns of such paths (`outputs/lr/*`).

    Raises:
        ConfigError: If a named folder holds no run, a pattern matches none, or there are more than 10,000 runs.
    """
    folders: list[Path] = []
    resolved_folders: set[Path] = set()
    for word in words:
        # A run that is named twice stays, since somebody asked for it; a pattern means what is new.
        if _is_pattern(word):
            matching_folders = _matches(word)
            new_folders = [folder for folder in matching_folders if folder.resolve() not in resolved_folders]
        else:
            new_folders = _named_runs(word)

        folders += new_folders
        resolved_folders.update(folder.resolve() for folder in new_folders)
    require(len(folders) <= _MOST_RUNS, f"runs: {len(folders):,} folders match: give a narrower pattern")
    return folders


def _is_pattern(word: str) -> bool:
    has_wildcard = _PATTERN.search(word) is not None
    # The folder of a run may have brackets in its own name.
    return has_wildcard and not Path(word).is_dir()


def _named_runs(word: str) -> list[Path]:
    """Return the runs of a folder that is named.

    Raises:
        ConfigError: If it holds none.
    """
    folder = Path(word).expanduser()

    runs = _runs_of(folder)
    if not runs:
        shown_path = printable(word)
        there = f"holds no {METRICS_FILE}" if folder.is_dir() else "no such folder"
        raise ConfigError(
            f"runs={shown_path}: {there}: give the folder of a run that has ended, of a sweep, or a pattern in "
            f"quotes, as 'runs=[outputs/lr/*]'"
        )
    return runs


def _matches(word: str) -> list[Path]:
    """Return the runs that a pattern matches.

    Raises:
        ConfigError: If it matches none.
    """
    pattern = str(Path(word).expanduser())
    paths = sorted(glob.glob(pattern), key=_order)

    runs: list[Path] = []
    for path in paths:
        runs += _runs_of(Path(path))
    if not runs:
        shown_pattern = printable(word)
        among = f"none of its {len(paths)} matches holds a {METRICS_FILE}" if paths else "it matches nothing"
        raise ConfigError(f"runs={shown_pattern}: {among}: give the folders of runs that have ended")
    return runs


def _runs_of(folder: Path) -> list[Path]:
    """Return the folder itself if it is a run's; for a sweep's folder, those of its jobs that have ended."""
    if (folder / METRICS_FILE).is_file():
        return [folder]
    if not (folder / "multirun.yaml").is_file():
        return []

    # A job of a sweep that still runs, or has failed, has no `metrics.json` yet.
    jobs = [path.parent for path in folder.glob(f"*/{METRICS_FILE}")]
    return sorted(jobs, key=_order)


def _order(path: str | Path) -> list[tuple[int, int, str]]:
    """Return a sort key that compares the numbers inside names as numbers: job 9 comes before job 10."""
    key = []
    for part in re.split(r"([0-9]+)", str(path)):
        # `isdecimal` alone is also true of digits of other scripts, which the pattern does not split off.
        if part.isascii() and part.isdecimal():
            key.append((0, int(part), ""))
        else:
            key.append((1, 0, part))
    return key
