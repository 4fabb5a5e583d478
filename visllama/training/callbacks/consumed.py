"""`consumed.jsonl`: the keys of every step's samples, in the order of the global batch."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from visllama.data.collate import Step


class ConsumedKeys(Callback):
    """Write a line a step: `{"step": g, "keys": [...]}`. After a resume a step may stand there twice: the last counts.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("\n")  # what was killed in the middle of a line

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, _, step: Step, index: int) -> None:
        keys = step["keys"]
        if trainer.world_size > 1:
            gathered: list = [None] * trainer.world_size
            dist.all_gather_object(gathered, keys, group=trainer.strategy.control)
            keys = [key for of_rank in gathered for key in of_rank]
        if trainer.is_global_zero:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": index, "keys": keys}) + "\n")


def read_consumed(path: Path) -> dict[int, list[str]]:
    """Return the keys of each step; lines that were not written to their end are none."""
    steps = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        steps[found["step"]] = found["keys"]
    return steps
