"""What lies in a run's folder after it was stopped, and whether that is what an unstopped run leaves."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.scripts.survival.life import Life
from tests.scripts.survival.report import Report
from visllama.checkpoint.folder import checkpoints, find_damage
from visllama.training.callbacks.consumed import read_consumed


def differing(one: Sequence[Path], other: Sequence[Path]) -> list[str]:
    """Name the tensors of some safetensors files, and others, that are not the same to the bit."""
    a, b = (
        {name: _bits(tensor) for path in paths for name, tensor in load_file(path).items()} for paths in (one, other)
    )
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def _bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def logged_losses(run: Path) -> dict[tuple[int, str], str]:
    """Return the losses that metrics.csv holds, by step and name; of a step that stands there twice the last."""
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {(int(row["step"]), name): value for row in rows for name, value in row.items() if "/loss" in name and value}


def compare(report: Report, what: str, whole: Path, run: Path, life: Life) -> bool:
    """Look whether a run that was stopped has come to the same as one that was not."""
    if not (run / "weights" / "visllama.safetensors").is_file():
        return report.expect(f"{what}: weights/", "there", "missing", life)
    expected, found = (read_consumed(folder / "consumed.jsonl") for folder in (whole, run))
    wrong = sorted(step for step in expected.keys() | found.keys() if expected.get(step) != found.get(step))
    good = report.expect(f"{what}: steps whose keys differ", [], wrong, life)
    weights = "weights/visllama.safetensors"
    good &= report.expect(
        f"{what}: trained tensors that differ", [], differing([whole / weights], [run / weights]), life
    )
    newest = [max(checkpoints(folder)) for folder in (whole, run)]
    good &= report.expect(f"{what}: last checkpoint", newest[0].step, newest[1].step, life)
    shards = (sorted(checkpoint.path.glob("*.safetensors")) for checkpoint in newest)  # with the optimizer's state
    good &= report.expect(f"{what}: tensors of the last checkpoint that differ", [], differing(*shards), life)
    logged, again = (logged_losses(folder) for folder in (whole, run))
    wrong = sorted(key for key in logged.keys() & again.keys() if logged[key] != again[key])
    good &= report.expect(f"{what}: losses of metrics.csv that differ", [], wrong, life)
    if missing := sorted(logged.keys() - again.keys()):  # of the step at which it was stopped
        report.facts.setdefault("losses that metrics.csv lacks after it", {})[what] = missing
    hidden = [p.name for p in (run / "checkpoints").glob(".step_*")]
    return good & report.expect(f"{what}: half-written folders left", [], hidden, life)


def check_folder(report: Report, what: str, run: Path, life: Life) -> None:
    """Look whether all that lies under its proper name is whole."""
    damage = {c.path.name: found for c in checkpoints(run) if (found := find_damage(c.path)) is not None}
    report.expect(f"{what}: damaged checkpoints", {}, damage, life)
    for name in ("weights/visllama.json", "metrics.json"):
        if (run / name).is_file():
            with contextlib.suppress(ValueError):
                json.loads((run / name).read_text())
                continue
            report.expect(f"{what}: {name}", "whole", "no JSON", life)
    if (run / "weights/visllama.safetensors").is_file():
        try:
            with safe_open(run / "weights/visllama.safetensors", framework="pt") as file:
                file.keys()
        except Exception as error:
            report.expect(f"{what}: weights/visllama.safetensors", "whole", str(error), life)


def has_begun(run: Path) -> bool:
    """Return whether there is a run to go on with: its command line was written down, by us or by Hydra."""
    return (run / "command.yaml").is_file() or (run / ".hydra" / "overrides.yaml").is_file()


def count_consumed(run: Path) -> int:
    path = run / "consumed.jsonl"
    return max(read_consumed(path), default=-1) + 1 if path.is_file() else 0


def newest_step(run: Path) -> int:
    return max((c.step for c in checkpoints(run)), default=0)
