"""Train with a global batch whose first half is text alone and whose second half has images; run under torchrun.

python -m torch.distributed.run --nproc-per-node=2 tests/scripts/mix_on_ranks.py OUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.tiny import collator_of, maker_of, tiny_parts
from visllama.data.datamodule import TrainingData
from visllama.data.order import Order, Place, rank_share
from visllama.data.scenes.source import ScenesSource
from visllama.machine import preemption
from visllama.model.weights import build_model, trained_tensors
from visllama.parallel.strategy import DDP
from visllama.training.module import VisLlamaModule

BATCH, STEPS = 8, 50
OPTIM = {
    "_target_": "torch.optim.AdamW", "lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1, "schedule": "cosine", "warmup_fraction": 0.05,
    "clip_norm": 1.0, "lr_by_part": {},
}  # fmt: skip
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}


class HalfAndHalf(Order):
    """Of each batch the first half is of the first source, the second of the second."""

    def positions(self, step: int, rank: int, num_ranks: int) -> list[int]:
        return [step * BATCH + q for q in rank_share(BATCH, rank, num_ranks)]

    def locate(self, position: int) -> Place:
        step, q = divmod(position, BATCH)
        source = int(q >= BATCH // 2)
        return Place(source, (step * BATCH // 2 + q % (BATCH // 2)) % 40, 0)


class Written(Callback):
    def __init__(self):
        self.losses, self.images = [], []

    def on_train_batch_end(self, trainer, module, _, step, *__):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.images.append(sum(int((batch["input_ids"] == -2).sum()) for batch in step["micro_batches"]))


def main(out: str) -> None:
    torch.set_num_threads(1)
    num_ranks = int(os.environ.get("WORLD_SIZE", 1))
    torch.manual_seed(0)
    model = build_model(tiny_parts() | {"lora": LORA}, ("connector", "markers", "adapter"))
    model.load_base_weights(torch.float64).double()
    sources = {
        "text": ScenesSource("train", 40, holds="instructions"),
        "pictures": ScenesSource("train", 40, holds="questions"),
    }
    order = HalfAndHalf({n: s.shard_items for n, s in sources.items()}, dict.fromkeys(sources, 1.0), BATCH, 1)
    maker = maker_of(model).as_judged(None, "question_answer")
    data = TrainingData(
        sources, sources, dict.fromkeys(sources, maker), collator_of(model, 2), order, STEPS, num_workers=0
    )
    written = Written()
    trainer = pl.Trainer(
        accelerator="cpu", devices=num_ranks, strategy=DDP() if num_ranks > 1 else "auto",
        max_epochs=1, max_steps=STEPS, limit_val_batches=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[written], log_every_n_steps=1, precision="64-true", use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(VisLlamaModule(model, OPTIM, STEPS), data)
    found = {name: tensor.contiguous() for name, tensor in trained_tensors(model).items()}
    found["losses"] = torch.tensor(written.losses, dtype=torch.float64)
    found["images"] = torch.tensor(written.images)
    save_file(found, f"{out}.{trainer.global_rank}")


if __name__ == "__main__":
    main(sys.argv[1])
    preemption.end_now(0)
