"""Checkpoints to go on from: one file, written whole or not at all, and what a run needs to be resumed."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from visllama.config import ConfigError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its place, flush it to the disk, and only then give it its name."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        return torch.load(path, map_location=map_location, weights_only=True)


class Checkpoint:
    """The last checkpoint of a run, as far as it is looked at before anything is loaded.

    Args:
        path: The file.

    Raises:
        ConfigError: If it is none that we wrote.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            self.step: int = content["global_step"]
            (self.data,) = content["loops"]["fit_loop"]["state_dict"]["combined_loader"]
        except Exception as error:  # torch raises many kinds on damaged files
            raise ConfigError(f"{path}: no checkpoint to go on from ({str(error).splitlines()[0]})") from error

    @classmethod
    def last_of(cls, run: Path) -> Checkpoint | None:
        """Find a run's last checkpoint; None if it was stopped before it wrote one."""
        found = sorted((run / "checkpoints").glob("step_*.ckpt"))
        return cls(found[-1]) if found else None


def keep_only(checkpoint: Checkpoint | None, run: Path) -> None:
    """Remove the other checkpoints of a run: an older one, a half-written one, those of a run before it."""
    for path in (run / "checkpoints").glob("*step_*"):
        if checkpoint is None or path != checkpoint.path:
            path.unlink()


def keep_metrics(logger: object, folder: Path, before_step: int) -> None:
    """Keep the rows that a stopped run wrote to `metrics.csv`: Lightning's logger would begin it anew.

    Args:
        logger: The run's.
        folder: Where `metrics.csv` lies.
        before_step: The checkpoint's; later rows come again.
    """
    path = folder / "metrics.csv"
    if not isinstance(logger, CSVLogger) or not path.is_file():
        return
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if _is_whole(row) and int(row["step"]) < before_step]
    if not rows:
        return
    writer = logger.experiment  # deletes the file
    writer.metrics_keys = sorted(rows[0])
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=writer.metrics_keys)
        table.writeheader()
        table.writerows(rows)


def _is_whole(row: Mapping) -> bool:
    return None not in row and None not in row.values() and str(row.get("step")).isdigit()
