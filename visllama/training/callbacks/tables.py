"""The tables that a run begins with: what is trained, and on which data."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from rich.markup import escape
from rich.table import Table

from visllama.console import say
from visllama.data.datamodule import TrainingData
from visllama.data.source import count_items
from visllama.model.visllama import PARTS, VisLlama, part_of
from visllama.training.optim import lr_scale, part_rate


def parts_table(model: VisLlama, optim: Mapping) -> Table:
    """Show each part: parameters, memory, dtype, trained or frozen; and the learning rates after warm-up.

    Args:
        model: The model, as it trains.
        optim: The `optim` config group.
    """
    table = Table("part", "class", title="Model")
    for header, justify in (("parameters", "right"), ("MiB", "right"), ("dtype", "left"), ("state", "left")):
        table.add_column(header, justify=justify)
    own: dict[str, list[torch.nn.Parameter]] = {name: [] for name in PARTS}
    for name, parameter in model.named_parameters():
        own.setdefault(part_of(name), []).append(parameter)
    for name, parameters in own.items():
        part = getattr(model, name, None)
        count = sum(p.numel() for p in parameters)
        mib = sum(p.numel() * p.element_size() for p in parameters) / 2**20
        dtypes = "/".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters}))
        state = "[green]trained[/]" if name in model.trainable else "frozen"
        inner = getattr(part, "model", part) if name == "vision_encoder" else part
        table.add_row(name, "LoRA" if part is None else type(inner).__name__, f"{count:,}", f"{mib:.1f}", dtypes, state)
    encoder = type(model.vision_encoder).__name__
    fits = encoder in getattr(model.connector, "exports_with", (encoder,))
    holder = getattr(model.connector, "exports_to", None) if fits else None
    rates = [f"{name} {_rate(model, name, optim)}" for name in own if name in model.trainable]
    table.caption = f"exports to: {holder or 'visllama weights alone'}\nlearning rate: {', '.join(rates)}"
    return table


def _rate(model: VisLlama, part: str, optim: Mapping) -> str:
    rate = part_rate(model, part, optim["lr"], optim["lr_by_part"])
    scale = lr_scale(model, part)
    is_scaled = scale != 1 and not optim["lr_by_part"].get(part)
    return f"{rate:g} ({scale:g} of optim.lr)" if is_scaled else f"{rate:g}"


def data_table(data: TrainingData, micro_batch_size: int, num_ranks: int, max_steps: int) -> Table:
    """Show what the data and batch settings make: records, items, steps, samples."""
    batch = data.order.global_batch_size
    micro = min(micro_batch_size, -(-batch // num_ranks))
    samples = max_steps * batch
    table = Table("source", title="Data")
    for header in ("records", "items", "share", "samples", "passes"):
        table.add_column(header, justify="right")
    for (name, source), share in zip(data.train.items(), data.order.shares, strict=True):
        share = share / sum(data.order.shares)
        drawn = share * samples
        num_items = count_items(source)
        row = f"{len(source):,}", f"{num_items:,}", f"{share:.1%}", f"{drawn:,.0f}"
        table.add_row(escape(name), *row, f"{drawn / num_items:.2f}")
    table.caption = (
        f"{max_steps:,} steps of {batch} samples, {num_ranks} rank{'s' * (num_ranks > 1)}, micro-batches of up to "
        f"{micro}; {len(data.val):,} validation records"
    )
    for name, source in data.val.sources.items():
        if source.origin:
            table.caption += escape(f"\nvalidation of {name}: {source.origin}")
    return table


class StartupTable(Callback):
    """Print the model and the data before the first step."""

    def __init__(self, micro_batch_size: int, optim: Mapping) -> None:
        self.micro_batch_size, self.optim = micro_batch_size, optim

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        data = data_table(trainer.datamodule, self.micro_batch_size, trainer.world_size, trainer.max_steps)
        say(parts_table(module.model, self.optim), data)
