"""Write and read `consumed.jsonl`: which samples each step has trained on, by their keys."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT

from visllama.data.collate import Step
from visllama.training.lightning_parts import gather_objects


class ConsumedKeys(Callback):
    """Append a line to a file after each step: `{"step": 0, "keys": ["source/key", ...]}`.

    Steps count from 0. The keys are those of the global batch, in the order of ranks. After a resume a step may have
    two lines, of which the last is right. The first rank writes.

    Args:
        path: The file, which is made if it does not exist.
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
    """Return the keys of the samples of each step, by the step's number from 0, as `ConsumedKeys` has written them.

    If a step has two lines, the last one is used. A line that is no valid JSON, because it was cut off, is left out.

    Args:
        path: The file `consumed.jsonl` of a run.

    Raises:
        OSError: If the file cannot be read.
    """
    steps = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        steps[entry["step"]] = entry["keys"]

    return steps
