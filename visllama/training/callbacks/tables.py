"""Build and print the tables that a run begins with: where it runs, what is trained, and on which data."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
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
from visllama.training.lightning_parts import connected, run_module
from visllama.training.optim import lr_scale, part_rate, warmup_steps
from visllama.training.optimizer_states import measure_states

_WIDE = 75
"""The least width of a terminal, in characters, at which the classes of the parts are shown."""


def startup_tables(
    config: TrainConfig, model: VisLlama, data: TrainingData, folder: Path, num_steps: int
) -> list[Table]:
    """Return the three tables that are printed before the first step: of the run, of its model and of its data.

    Args:
        config: The configuration of the run.
        model: The model, whose parameters have the dtypes in which they are loaded.
        data: The data module of the run.
        folder: The run's folder, which need not exist yet.
        num_steps: The number of optimizer steps of the run.
    """
    trainer = config.trainer
    nodes, per_node = count_ranks(trainer.num_nodes, trainer.devices, trainer.accelerator)
    num_ranks = nodes * per_node

    return [
        run_table(config, model, folder, num_steps),
        parts_table(model, config.optim),
        data_table(data, config.micro_batch_size, num_ranks, num_steps),
    ]


def run_table(config: TrainConfig, model: VisLlama, folder: Path, num_steps: int) -> Table:
    """Return the table of a run's folder, devices, precision, and the disk space that its checkpoints take.

    The free disk space, the device and the optimizer's state are read or measured on this machine.

    Args:
        config: The configuration of the run.
        model: The model, with or without weights.
        folder: The run's folder, which need not exist yet.
        num_steps: The number of optimizer steps of the run; a warm-up that is not shorter is named in the table.
    """
    trainer = config.trainer
    precision = find_precision(trainer.precision, trainer.accelerator)
    dtype = _dtype_name(frozen_dtype(precision))

    table = Table(title="Run", show_header=False)
    table.add_column()
    # Folded and not cut off, so that a path can be copied.
    table.add_column(overflow="fold")
    table.add_row("folder", escape(str(folder)))
    table.add_row("device", _describe_ranks(config))
    table.add_row("precision", f"{precision}, frozen weights in {dtype}")
    table.add_row("disk", _describe_disk(config, model, folder))
    table.add_row("time", f"measured from step {trainer.log_every_steps} on; visllama plan tells that of a GPU")

    # Such a run never reaches its learning rate, which nobody may have meant.
    warmup = warmup_steps(config.optim["warmup_fraction"], num_steps)
    if warmup >= num_steps:
        table.add_row("warm-up", f"all steps: {warmup} are needed to reach the rate (optim.warmup_fraction=0: none)")
    return table


def _describe_ranks(config: TrainConfig) -> str:
    """Return the name of the run's devices and the number of its ranks, as text."""
    trainer = config.trainer
    nodes, per_node = count_ranks(trainer.num_nodes, trainer.devices, trainer.accelerator)

    device = find_device(trainer.accelerator)
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    ranks = f"{device_name}: {_count(per_node, 'rank')}"
    if nodes > 1:
        ranks += f" on each of {nodes} nodes"
    return ranks


def _describe_disk(config: TrainConfig, model: VisLlama, folder: Path) -> str:
    """Return how much the run's checkpoints take of the disk, and how much is free there, as text."""
    num_checkpoints = _count(config.trainer.keep_checkpoints, "checkpoint")
    checkpoint_size = decimal(checkpoint_bytes(config, model))
    # The optimizer's state of a class of the user's is not measured: the line says that it comes on top.
    if not _has_known_state(config):
        checkpoint_size += " and the optimizer's state"

    # The run's folder may not be there yet.
    existing_folder = next(place for place in (folder, *folder.parents) if place.is_dir())
    free = decimal(shutil.disk_usage(existing_folder).free)
    return f"{num_checkpoints} of {checkpoint_size} (one more while it saves); {free} free"


def _dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its module: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def checkpoint_bytes(config: TrainConfig, model: VisLlama) -> int:
    """Return the approximate size of a checkpoint in bytes: the trained parameters and the optimizer's state.

    The state is counted for torch's optimizers alone, and is left out for a class of the user's.

    Args:
        config: The configuration of the run.
        model: The model, with or without weights.
    """
    sizes = []
    for name, parameter in model.named_parameters():
        if part_of(name) in model.trainable:
            sizes.append(parameter.numel())

    precision = find_precision(config.trainer.precision, config.trainer.accelerator)
    # Trained tensors are fp32 at least.
    bytes_a_number = torch.promote_types(frozen_dtype(precision), torch.float32).itemsize

    state_bytes_a_number = 0.0
    state_bytes_a_tensor = 0
    if _has_known_state(config):
        states = measure_states(config.optim, config.plugins, bytes_a_number)
        state_bytes_a_number = states.bytes_a_number
        state_bytes_a_tensor = states.bytes_a_tensor

    bytes_by_number = round(sum(sizes) * (bytes_a_number + state_bytes_a_number))
    bytes_by_tensor = len(sizes) * state_bytes_a_tensor
    return bytes_by_number + bytes_by_tensor


def _has_known_state(config: TrainConfig) -> bool:
    """Return whether the optimizer is one of torch's, so that a step on the side may measure its state.

    A class of the user's may count its steps, and is not called here.
    """
    return config.optim["_target_"].startswith("torch.optim.")


def _count(number: int, name: str) -> str:
    """Return a number with its noun: "1 rank", "2 ranks"."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def parts_table(model: VisLlama, optim: Mapping) -> Table:
    """Return the table of a model's parts: parameters, memory, dtype, and whether they are trained or frozen.

    Below it stand the learning rates of the trained parts, and the formats that the model can be exported to. The class
    of each part is shown where the terminal is wide enough.

    Args:
        model: The model, whose parameters have the dtypes that are to be shown; it needs no weights.
        optim: The `optim` config group.
    """
    table = Table(title="Model")
    table.add_column("part", no_wrap=True)

    is_wide = get_console().width >= _WIDE
    if is_wide:
        table.add_column("class")
    for header in ("parameters", "MiB"):
        table.add_column(header, justify="right", no_wrap=True)
    for header in ("dtype", "state"):
        table.add_column(header, justify="left", no_wrap=True)

    # The parts in their order, also those without parameters; an adapter comes behind them.
    parameters_by_part: dict[str, list[torch.nn.Parameter]] = {name: [] for name in PARTS}
    for name, parameter in model.named_parameters():
        parameters = parameters_by_part.setdefault(part_of(name), [])
        parameters.append(parameter)

    rates = []
    for name, parameters in parameters_by_part.items():
        state = "frozen"
        if name in model.trainable:
            state = "[green]trained[/]"
            rate = _rate(model, name, optim)
            rates.append(f"{name} {rate}")

        cells = [name]
        if is_wide:
            cells.append(_class_name(model, name))
        cells += _sizes(parameters)
        cells.append(state)
        table.add_row(*cells)

    formats = [form for form in EXPORT_FORMATS if find_obstacle(model, form) is None]
    listed_formats = ", ".join(formats)
    listed_rates = ", ".join(rates)
    table.caption = f"exports to: {listed_formats}\nlearning rate: {listed_rates}"
    return table


def _sizes(parameters: Sequence[torch.nn.Parameter]) -> list[str]:
    """Return the number of values of a part's parameters, their size in MiB and their dtypes, as text."""
    num_values = sum(parameter.numel() for parameter in parameters)
    num_bytes = sum(parameter.nbytes for parameter in parameters)
    num_mib = num_bytes / 2**20
    dtypes = {_dtype_name(parameter.dtype) for parameter in parameters}
    listed_dtypes = "/".join(sorted(dtypes))
    return [f"{num_values:,}", f"{num_mib:.1f}", listed_dtypes]


def _class_name(model: VisLlama, name: str) -> str:
    """Return the name of the class of a part of the model; "LoRA" for the adapter, which is no module of its own."""
    part = getattr(model, name, None)
    if part is None:
        return "LoRA"

    # The encoder wraps a model of transformers, whose class says more.
    if name == "vision_encoder":
        part = getattr(part, "model", part)
    return type(part).__name__


def _rate(model: VisLlama, part: str, optim: Mapping) -> str:
    """Return a part's full learning rate as text, with its factor to `optim.lr` where its class has set one."""
    rate = part_rate(model, part, optim["lr"], optim["lr_by_part"])
    scale = lr_scale(model, part)
    # A rate of the config's own for the part is taken as it is.
    is_scaled = scale != 1 and not optim["lr_by_part"].get(part)
    if is_scaled:
        return f"{rate:g} ({scale:g} of optim.lr)"
    return f"{rate:g}"


def data_table(data: TrainingData, micro_batch_size: int, num_ranks: int, max_steps: int) -> Table:
    """Return the table of a run's training sources: records, items, and how many samples the run draws of each.

    An item is one caption, question or conversation of a record; one sample shows one item.

    Args:
        data: The data module of the run.
        micro_batch_size: The largest number of samples that a rank computes at once.
        num_ranks: The number of ranks (processes, one a device) of the run.
        max_steps: The number of optimizer steps of the run.
    """
    batch_size = data.order.global_batch_size
    num_samples = max_steps * batch_size
    table = Table("source", title="Data")
    for header in ("records", "items", "share", "samples", "passes"):
        table.add_column(header, justify="right")

    shares = data.order.shares
    total_share = sum(shares)
    for (name, source), source_share in zip(data.train.items(), shares, strict=True):
        num_records = len(source)
        num_items = count_items(source)
        share = source_share / total_share
        num_drawn = share * num_samples
        num_passes = num_drawn / num_items
        table.add_row(
            escape(name),
            f"{num_records:,}",
            f"{num_items:,}",
            f"{share:.1%}",
            f"{num_drawn:,.0f}",
            f"{num_passes:.2f}",
        )

    # A rank has no more samples than its part of the batch.
    samples_a_rank = math.ceil(batch_size / num_ranks)
    largest_micro_batch = min(micro_batch_size, samples_a_rank)
    ranks = _count(num_ranks, "rank")
    num_val = len(data.val)
    caption = (
        f"{max_steps:,} steps of {batch_size} samples, {ranks}, micro-batches of up to {largest_micro_batch}; "
        f"{num_val:,} validation records"
    )
    for name, source in data.val.sources.items():
        if source.origin:
            caption += escape(f"\nvalidation of {name}: {source.origin}")
    table.caption = caption
    return table


class StartupTable(Callback):
    """Print the tables of `startup_tables` on the first rank, before the first step of a run or of its resume.

    Args:
        config: The configuration of the run.
        folder: The run's folder.
    """

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        model = run_module(pl_module).model
        data = connected(trainer).datamodule

        say(*startup_tables(self.config, model, data, self.folder, trainer.max_steps))
