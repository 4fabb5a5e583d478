"""Train small models on every rank count, strategy, stage and way to accumulate and clip; run under torchrun.

python -m torch.distributed.run --standalone --nproc-per-node=2 tests/scripts/train_on_ranks.py OUT 64-true 50 [CASE ...]

A case is <stage>-<most samples a micro-batch>-<norm that gradients are clipped to>; without any it is all. Writes
OUT.<ranks>-<strategy>-<case>: weights, and of each step its loss and gradients, as safetensors, by the first rank.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import DoublePrecision
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.tiny import data_of, tiny_parts
from visllama.data.scenes.source import ScenesSource
from visllama.machine import preemption
from visllama.machine.devices import frozen_dtype
from visllama.model.weights import build_model, trained_tensors, whole
from visllama.parallel.strategy import DDP, FSDP, SingleDevice
from visllama.training.module import VisLlamaModule

BATCH = 8
OPTIM = {"_target_": "torch.optim.AdamW", "lr": 3e-4, "betas": [0.9, 0.95], "weight_decay": 0.1, "schedule": "cosine", "warmup_fraction": 0.05, "lr_by_part": {}}  # fmt: skip
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}
STAGES = {
    "pretrain": ("captions", ("connector", "markers")),
    "finetune": ("questions", ("connector", "markers", "adapter")),
}
CASES = ["-".join(case) for case in itertools.product(STAGES, ("8", "1"), ("inf", "0.1"))]


class Watched(VisLlamaModule):
    """Keeps the gradients of each step, before they are clipped."""

    def _update(self, loss):
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad and p.grad is not None]
        for name, parameter in trained:
            self.gradients.setdefault(name, []).append(whole(parameter.grad).clone())
        super()._update(loss)


class Losses(Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, *_):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def train(strategy: str, case: str, precision: str, steps: int) -> dict:
    torch.manual_seed(0)
    stage, micro_batch_size, clip = case.split("-")
    holds, trainable = STAGES[stage]
    model = build_model(tiny_parts() | ({"lora": LORA} if stage == "finetune" else {}), trainable)
    made = {"one": lambda: SingleDevice(torch.device("cpu")), "ddp": DDP, "fsdp": FSDP}[strategy]()
    dtype = frozen_dtype(precision)

    def load():
        model.load_base_weights(dtype, as_stored=made.is_sharded)
        if not made.is_sharded:
            model.to(torch.promote_types(dtype, torch.float32))
        made.prepare(model, dtype)

    source = ScenesSource("train", 64, holds=holds)
    data = data_of(model, {"scenes": source}, source, BATCH, steps, int(micro_batch_size))
    module, losses = Watched(model, OPTIM | {"clip_norm": float(clip)}, steps, load=load), Losses()
    module.gradients = {}
    trainer = pl.Trainer(
        accelerator="cpu", devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)), strategy=made, max_epochs=1, max_steps=steps,
        limit_val_batches=0, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[losses], log_every_n_steps=1, use_distributed_sampler=False, plugins=[DoublePrecision()] if precision == "64-true" else None,
    )  # fmt: skip
    trainer.fit(module, data)
    found = {name: whole(tensor).contiguous() for name, tensor in trained_tensors(model).items()}
    found |= {f"gradients/{name}": torch.stack(each) for name, each in module.gradients.items()}
    return found | {"losses": torch.tensor(losses.losses, dtype=torch.float64)}


def main(out: str, precision: str, steps: str, *cases: str) -> None:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    num_ranks = int(os.environ.get("WORLD_SIZE", 1))
    for strategy in ("one",) if num_ranks == 1 else ("ddp", "fsdp"):
        for case in cases or CASES:
            found = train(strategy, case, precision, int(steps))
            if os.environ.get("RANK", "0") == "0":
                save_file(found, f"{out}.{num_ranks}-{strategy}-{case}")


if __name__ == "__main__":
    main(*sys.argv[1:])
    preemption.end_now(0)
