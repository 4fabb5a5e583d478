"""Write `consumed.jsonl`, the keys of every step's samples, in the order of the global batch."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT

from visllama.data.collate import Step
from visllama.training.lightning_parts import gather_objects


class ConsumedKeys(Callback):
    """Write one line for each step: `{"step": g, "keys": [...]}`.

    After a resume a step may have two lines, of which the last is right.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or not self.path.is_file():
            return
        # An earlier process of this run may have been killed in the middle of a line.
        if not self.path.read_bytes().endswith(b"\n"):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("\n")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Step,
        batch_idx: int,
    ) -> None:
        gathered = gather_objects(trainer, batch["keys"])
        keys = [key for keys_of_rank in gathered for key in keys_of_rank]

        if trainer.is_global_zero:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": batch_idx, "keys": keys}) + "\n")


def read_consumed(path: Path) -> dict[int, list[str]]:
    """Return the keys of each step; a line that was not written to its end is left out."""
    steps = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        steps[entry["step"]] = entry["keys"]

    return steps
