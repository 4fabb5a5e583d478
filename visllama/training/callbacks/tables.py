"""The tables that a run begins with: where it runs, what is trained, and on which data."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from rich import get_console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from visllama.config.choices import EXPORT_FORMATS
from visllama.config.schema import TrainConfig
from visllama.console import say
from visllama.data.datamodule import TrainingData
from visllama.data.source import count_items
from visllama.machine.devices import count_ranks, find_device, find_precision, frozen_dtype
from visllama.model.export_formats import find_obstacle
from visllama.model.visllama import PARTS, VisLlama, part_of
from visllama.training.optim import lr_scale, part_rate, warmup_steps
from visllama.training.optimizer_states import measure_states

_WIDE = 75
"""Columns of a terminal from which on the classes of the parts are shown."""


def startup_tables(
    config: TrainConfig, model: VisLlama, data: TrainingData, folder: Path, num_steps: int
) -> list[Table]:
    """Return what a run says before its first step: the tables of the run, of its model and of its data."""
    trainer = config.trainer
    nodes, per_node = count_ranks(trainer.num_nodes, trainer.devices, trainer.accelerator)
    return [
        run_table(config, model, folder, num_steps),
        parts_table(model, config.optim),
        data_table(data, config.micro_batch_size, nodes * per_node, num_steps),
    ]


def run_table(config: TrainConfig, model: VisLlama, folder: Path, num_steps: int) -> Table:
    """Show where a run computes and writes, and how much disk its checkpoints take."""
    trainer = config.trainer
    nodes, per_node = count_ranks(trainer.num_nodes, trainer.devices, trainer.accelerator)
    device = find_device(trainer.accelerator)
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    precision = find_precision(trainer.precision, trainer.accelerator)
    dtype = str(frozen_dtype(precision)).removeprefix("torch.")
    each = decimal(checkpoint_bytes(config, model)) + " and the optimizer's state" * (not _has_known_state(config))
    existing = next(place for place in (folder, *folder.parents) if place.is_dir())

    table = Table(title="Run", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # a path is there to be copied
    table.add_row("folder", escape(str(folder)))
    table.add_row("device", f"{device_name}: {_count(per_node, 'rank')}" + f" on each of {nodes} nodes" * (nodes > 1))
    table.add_row("precision", f"{precision}, frozen weights in {dtype}")
    table.add_row(
        "disk",
        f"{_count(trainer.keep_checkpoints, 'checkpoint')} of {each} (one more while it saves); "
        f"{decimal(shutil.disk_usage(existing).free)} free",
    )
    table.add_row("time", f"measured from step {trainer.log_every_steps} on; visllama plan tells that of a GPU")
    warmup = warmup_steps(config.optim["warmup_fraction"], num_steps)
    if warmup >= num_steps:
        table.add_row("warm-up", f"all steps: {warmup} are needed to reach the rate (optim.warmup_fraction=0: none)")
    return table


def checkpoint_bytes(config: TrainConfig, model: VisLlama) -> int:
    """Return about how large a checkpoint is: what trains, and what an optimizer of torch's keeps for it."""
    sizes = [p.numel() for name, p in model.named_parameters() if part_of(name) in model.trainable]
    frozen = frozen_dtype(find_precision(config.trainer.precision, config.trainer.accelerator))
    number = torch.promote_types(frozen, torch.float32).itemsize  # what trains is fp32 at least
    of_number, of_tensor = 0.0, 0
    if _has_known_state(config):
        of_number, of_tensor, _ = measure_states(config.optim, config.plugins, number)
    return round(sum(sizes) * (number + of_number)) + len(sizes) * of_tensor


def _has_known_state(config: TrainConfig) -> bool:
    """Return whether the optimizer is torch's: its state is measured by a step, which a user's may count."""
    return config.optim["_target_"].startswith("torch.optim.")


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


def parts_table(model: VisLlama, optim: Mapping) -> Table:
    """Show each part: parameters, memory, dtype, trained or frozen; and the learning rates after warm-up.

    Args:
        model: The model, as it trains.
        optim: The `optim` config group.
    """
    table = Table(title="Model")
    table.add_column("part", no_wrap=True)
    is_wide = get_console().width >= _WIDE
    if is_wide:
        table.add_column("class")
    for header, justify in (("parameters", "right"), ("MiB", "right"), ("dtype", "left"), ("state", "left")):
        table.add_column(header, justify=justify, no_wrap=True)
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
        kind = ["LoRA" if part is None else type(inner).__name__] if is_wide else []
        table.add_row(name, *kind, f"{count:,}", f"{mib:.1f}", dtypes, state)
    formats = [form for form in EXPORT_FORMATS if find_obstacle(model, form) is None]
    rates = [f"{name} {_rate(model, name, optim)}" for name in own if name in model.trainable]
    table.caption = f"exports to: {', '.join(formats)}\nlearning rate: {', '.join(rates)}"
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
        f"{max_steps:,} steps of {batch} samples, {_count(num_ranks, 'rank')}, micro-batches of up to "
        f"{micro}; {len(data.val):,} validation records"
    )
    for name, source in data.val.sources.items():
        if source.origin:
            table.caption += escape(f"\nvalidation of {name}: {source.origin}")
    return table


class StartupTable(Callback):
    """Print the run, the model and the data before the first step."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self.config, self.folder = config, folder

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        say(*startup_tables(self.config, module.model, trainer.datamodule, self.folder, trainer.max_steps))
