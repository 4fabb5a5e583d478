"""Which folders `runs=` means: those that are named, all that a pattern matches, and the jobs of a sweep."""

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
    """Return the folders of the runs, in the order of the words; those of a pattern in theirs.

    What a pattern matches beside runs, or what stands before it already, is passed over.

    Args:
        words: Folders of runs or of sweeps, and patterns of such (`outputs/lr/*`).

    Raises:
        ConfigError: If a folder is there that is no run's, or a pattern matches none.
    """
    folders: list[Path] = []
    places: set[Path] = set()
    for word in words:
        if _is_pattern(word):
            found = [folder for folder in _matches(word) if folder.resolve() not in places]
        else:
            found = _named(word)
        folders += found
        places.update(folder.resolve() for folder in found)
    require(len(folders) <= _MOST_RUNS, f"runs: {len(folders):,} folders match: give a narrower pattern")
    return folders


def _is_pattern(word: str) -> bool:
    return _PATTERN.search(word) is not None and not Path(word).is_dir()


def _named(word: str) -> list[Path]:
    folder = Path(word).expanduser()
    found = _runs_of(folder)
    if not found:
        there = f"holds no {METRICS_FILE}" if folder.is_dir() else "no such folder"
        raise ConfigError(
            f"runs={printable(word)}: {there}: give the folder of a run that has ended, of a sweep, or a pattern in "
            f"quotes, as 'runs=[outputs/lr/*]'"
        )
    return found


def _matches(word: str) -> list[Path]:
    paths = sorted(glob.glob(str(Path(word).expanduser())), key=_order)
    found = [folder for path in paths for folder in _runs_of(Path(path))]
    if not found:
        among = f"none of its {len(paths)} matches holds a {METRICS_FILE}" if paths else "it matches nothing"
        raise ConfigError(f"runs={printable(word)}: {among}: give the folders of runs that have ended")
    return found


def _runs_of(folder: Path) -> list[Path]:
    """Return a run's folder itself, and of a sweep's those of its jobs that have ended."""
    if (folder / METRICS_FILE).is_file():
        return [folder]
    if not (folder / "multirun.yaml").is_file():
        return []
    return sorted((path.parent for path in folder.glob(f"*/{METRICS_FILE}")), key=_order)


def _order(path: str | Path) -> list[tuple[int, int, str]]:
    """Return what sorts names as words, and the numbers inside them as numbers."""
    parts = re.split(r"([0-9]+)", str(path))
    return [(0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part) for part in parts]
