"""What a judgement leaves: the table at the end, and metrics.json with what made it."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from rich.table import Table

from visllama.paths import write_whole

_PACKAGES = ("visllama", "torch", "lightning", "transformers", "pycocoevalcap", "pillow")


def scores_table(name: str, evaluation: Mapping) -> Table:
    """Show one evaluation. Scores are printed x100, as papers do; the files hold pycocoevalcap's own scale."""
    controls = evaluation.get("controls", {})
    table = Table("metric", title=f"{name}: {evaluation.get('split', 'given captions')}, n = {evaluation['n']} (x100)")
    for header in ("score", "95% interval", *[control.replace("_", " ") for control in controls]):
        table.add_column(header, justify="right")
    for metric, value in evaluation["metrics"].items():
        low, high = evaluation.get("intervals", {}).get(metric, (None, None))
        interval = "" if low is None else f"{100 * low:.1f} - {100 * high:.1f}"
        beside = [f"{100 * scores[metric]:.1f}" if metric in scores else "" for scores in controls.values()]
        table.add_row(metric, f"{100 * value:.1f}", interval, *beside)
    return table


def provenance(**facts: object) -> dict:
    """Tell what made a result: versions, machine, the state of the source tree, and the caller's own facts."""
    commit = _git("rev-parse", "HEAD")
    return {
        "versions": {"python": platform.python_version()} | {package: version(package) for package in _PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}",
        "git": commit and {"commit": commit, "dirty": bool(_git("status", "--porcelain"))},
    } | facts


def _git(*command: str) -> str | None:
    """Ask git about the folder that this package lies in; None where it is in no checkout of ours."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", *command], capture_output=True, text=True, timeout=10, cwd=root, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_json(path: Path, content: object) -> None:
    """Write a JSON file whole or not at all."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
