"""What watches a run: a start-up table, throughput, sample captions, and the proof that frozen stayed frozen."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape
from rich.table import Table

from visllama.console import STARTED, say
from visllama.data.datamodule import TrainingData
from visllama.data.faults import BadRecord
from visllama.data.images import open_image
from visllama.data.items import count_items
from visllama.data.samples import images_of
from visllama.data.sources import origin
from visllama.errors import ConfigError
from visllama.evaluation.captioner import Captioner
from visllama.hardware import find_device
from visllama.model.visllama import PARTS, VisLlama, part_of
from visllama.model.weights import frozen_hashes
from visllama.prompts import turns_of
from visllama.resume import words_to_go_on
from visllama.training.bad_records import BadRecords
from visllama.training.consumed import ConsumedKeys
from visllama.training.curves import Curves
from visllama.training.guard import NonFinite
from visllama.training.hang import HangWatch
from visllama.training.optim import lr_scale, part_rate
from visllama.training.saving import Saving


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
        if origin(source):
            table.caption += escape(f"\nvalidation of {name}: {origin(source)}")
    return table


class StartupTable(Callback):
    """Print the model and the data before the first step."""

    def __init__(self, micro_batch_size: int, optim: Mapping) -> None:
        self.micro_batch_size, self.optim = micro_batch_size, optim

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        data = data_table(trainer.datamodule, self.micro_batch_size, trainer.world_size, trainer.max_steps)
        say(parts_table(module.model, self.optim), data)


class Throughput(Callback):
    """Log samples a second over all ranks, validation left out, and the learning rate that each group's step took."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.seconds, self.samples = 0.0, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        self._start = time.perf_counter()
        # The module sets the next step's rates at the end of a step, before this is asked to log.
        self.rates = {group["name"]: group["lr"] for group in module.optimizers().param_groups}

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        self.seconds += time.perf_counter() - self._start
        self.samples += module.num_samples
        if trainer.global_step % trainer.log_every_n_steps == 0:
            module.log("train/samples_per_second", self.samples / self.seconds)
            for name, rate in self.rates.items():
                module.log(f"lr/{name.replace(', ', '_').replace(' ', '_')}", rate)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, which a run that goes on leaves without its total."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        super().on_train_start(trainer, module)
        self.train_progress_bar.total = self.total_train_batches
        self.train_progress_bar.initial = trainer.global_step  # for its rate


class LastValidation(Callback):
    """Let every run end with a validation: the interval between two need not divide the number of steps.

    Attributes:
        validated_step: The step of the last validation.
    """

    def __init__(self) -> None:
        self.validated_step = -1

    def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # before it stops, Lightning validates, once

    def on_validation_end(self, trainer: pl.Trainer, *_) -> None:
        self.validated_step = trainer.global_step

    def is_missing(self, trainer: pl.Trainer) -> bool:
        """Return whether a run that has trained all its steps was stopped before it could validate the last."""
        return trainer.limit_val_batches > 0 and self.validated_step < trainer.global_step

    def state_dict(self) -> dict:
        return {"validated_step": self.validated_step}

    def load_state_dict(self, state: dict) -> None:
        self.validated_step = state["validated_step"]


class SampleTexts(Callback):
    """Show what the model says to a few validation records of each source, at each validation."""

    def __init__(self, captioners: Mapping[str, Captioner], num_records: int = 3) -> None:
        self.captioners, self.num_records = captioners, num_records

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Every rank generates, though one prints: under sharding all of them are needed.
        lines = []
        for name, captioner in self.captioners.items():
            readable = _readable(trainer.datamodule, name)
            fitting = (record for record in readable if captioner.has_room(module.model, record))
            records = list(islice(fitting, self.num_records))
            for record, said in zip(records, captioner(module.model, records), strict=True):
                *asked, reference = turns_of(record, 0, "", "", 0)
                question = f"{asked[-1].text} " if asked else ""
                lines.append(f"  {record['key']}: {question}{said}   (a reference: {reference.text})")
        if trainer.is_global_zero:
            say(f"\nstep {trainer.global_step}, after {time.perf_counter() - STARTED:.0f} s:", *lines)


def _readable(data: TrainingData, source: str) -> Iterator[dict]:
    """Yield the validation records of a source that can be read."""
    for index, (name, _) in enumerate(data.val.places):
        if name == source:
            with suppress(BadRecord):
                record = data.val.record(index)
                for image in images_of(record):
                    open_image(image)
                yield record


class FrozenWeights(Callback):
    """Hash the frozen tensors before and after training, and stop with an error if one bit has changed."""

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.before = frozen_hashes(module.model)

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        after = frozen_hashes(module.model)
        changed = [part for part in self.before if after[part] != self.before[part]]
        if changed:
            raise RuntimeError(f"frozen weights changed in training: {', '.join(changed)}")


class SameEverywhere(Callback):
    """Refuse ranks of different configs: they would train something that nobody has asked for.

    Args:
        cfg: Of this rank.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        found: list = [None] * trainer.world_size
        if trainer.world_size > 1:
            dist.all_gather_object(found, OmegaConf.to_yaml(self.cfg, resolve=True), group=trainer.strategy.control)
        for rank, other in enumerate(found[1:], start=1):
            if other != found[0]:
                lines = set(found[0].splitlines()) ^ set(other.splitlines())
                raise ConfigError(f"rank {rank} was given another config than rank 0: {'; '.join(sorted(lines)[:4])}")


def build_callbacks(cfg: DictConfig, folder: Path, captioners: Mapping[str, Captioner]) -> list[Callback]:
    """Give a run's callbacks; `folder` is the run's. Saving comes last: a checkpoint holds what the others count."""
    trainer, on_gpu = cfg.trainer, find_device(cfg.trainer.accelerator).type == "cuda"
    return [
        SameEverywhere(cfg),
        HangWatch(folder, trainer.timeout_s),
        StartupTable(cfg.micro_batch_size, cfg.optim),
        BadRecords(cfg.data.max_bad_fraction, cfg.data.max_consecutive_bad),
        ProgressBar(trainer.log_every_steps if on_gpu else 1),  # it reads what was logged, and waits for the GPU
        Throughput(),
        SampleTexts(captioners),
        FrozenWeights(),
        NonFinite(trainer.max_skipped_steps, cfg.optim.lr),
        Curves(folder / "curves.png"),
        LastValidation(),
        *([ConsumedKeys(folder / "consumed.jsonl")] if cfg.data.log_consumed else []),
        Saving(
            folder,
            trainer.checkpoint_every_steps,
            trainer.keep_checkpoints,
            shlex.join(["python", "train.py", *words_to_go_on(folder)]),
        ),
    ]
