"""Validate and judge a small model on sets of records of many sizes; run under torchrun.

python -m torch.distributed.run --standalone --nproc-per-node=2 tests/scripts/validate_on_ranks.py OUT fsdp CASE [CASE ...]

A case is <records>-<most samples at once>. The first rank writes OUT, as JSON: of each case its loss, in fp64, and its
captions. All cases are measured by one process group.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import DoublePrecision

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.scripts.train_on_ranks import OPTIM
from tests.support.tiny import data_of, maker_of, tiny_parts
from visllama.data.scenes.source import ScenesSource
from visllama.evaluation.captioner import Captioner
from visllama.machine import preemption
from visllama.model.weights import build_model
from visllama.parallel.strategy import DDP, FSDP, SingleDevice
from visllama.training.module import VisLlamaModule

BATCH = 8


class Watched(VisLlamaModule):
    """Keeps the loss of the last validation as it is before Lightning rounds it."""

    def log(self, name, value, **more):
        if name == "val/loss":
            self.val_loss = float(value)
        super().log(name, value, **more)


def measure(strategy: str, cases: Sequence[str]) -> dict[str, dict]:
    torch.manual_seed(0)
    model = build_model(tiny_parts(), ("connector", "markers"))
    made = {"one": lambda: SingleDevice(torch.device("cpu")), "ddp": DDP, "fsdp": FSDP}[strategy]()

    def load():
        model.load_base_weights(torch.float64, as_stored=made.is_sharded)
        for parameter in model.connector.parameters():
            # A fresh connector whispers: the captions would be the same for every picture. Four is exact in any dtype.
            parameter.data *= 4
        made.prepare(model, torch.float64)

    module = Watched(model, OPTIM | {"clip_norm": None}, 1, load=load)
    trainer = pl.Trainer(
        accelerator="cpu", devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)), strategy=made, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, plugins=[DoublePrecision()],
    )  # fmt: skip
    source, found = ScenesSource("val", 17), {}
    for case in cases:
        count, at_once = map(int, case.split("-"))
        data = data_of(model, {"scenes": source}, source, BATCH, 1, at_once, num_val_records=count)
        trainer.validate(module, data, verbose=False)
        captioner = Captioner(maker_of(model), {"max_new_tokens": 6}, at_once)
        captions = captioner(model.eval(), [source[i] for i in range(count)])
        found[case] = {"loss": module.val_loss, "captions": captions}
    return found


def main(out: str, strategy: str, *cases: str) -> None:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = measure(strategy, cases)
    if os.environ.get("RANK", "0") == "0":
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
    preemption.end_now(0)
