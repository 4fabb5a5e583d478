"""One training run, from its assembly to trained weights, their scores, and the run folder."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_only

from visllama.checkpoint.folder import Checkpoint, checkpoints, newest_whole, read_loader_state, remove_leftovers
from visllama.config.choices import READ_BY_EVALUATE
from visllama.config.command import write_command
from visllama.config.instantiate import build
from visllama.config.invocation import invocation, run_folder
from visllama.config.objective import PRUNED
from visllama.config.overrides import key_of, override
from visllama.config.plain import to_dict, to_yaml
from visllama.config.schema import TrainConfig
from visllama.config.selection import SELECTING
from visllama.console import is_first_rank, log, say
from visllama.data.collate import Collator
from visllama.data.datamodule import TrainingData, check_order
from visllama.data.loading import explain_killed
from visllama.data.samples import SampleMaker
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.index_page import write_index
from visllama.evaluation.report import provenance, write_json
from visllama.evaluation.runner import JudgeSettings, judge, sample_maker
from visllama.files import write_whole
from visllama.machine import preemption
from visllama.machine.devices import find_precision, frozen_dtype
from visllama.model.shapes import Shapes, read_shapes
from visllama.model.sharding import compute_again
from visllama.model.visllama import VisLlama, part_dtype, part_of
from visllama.model.weights import hash_weights, load_tensors, save_weights
from visllama.parallel import launch
from visllama.parallel.strategy import build_strategy
from visllama.tracking.loggers import build_loggers, closing, log_results, log_weights
from visllama.training.assembly import Assembly
from visllama.training.callbacks.bad_records import BadRecords
from visllama.training.callbacks.build import build_callbacks
from visllama.training.callbacks.curves import Curves
from visllama.training.callbacks.keep_best import KeepBest
from visllama.training.callbacks.last_validation import LastValidation
from visllama.training.callbacks.proofs import FrozenWeights
from visllama.training.callbacks.prune import Prune
from visllama.training.callbacks.tables import startup_tables
from visllama.training.callbacks.throughput import Throughput
from visllama.training.module import VisLlamaModule

_OF_EVALUATE = ("evaluation", "decoding", "paths.models", "plugins", "trainer=", "trainer/strategy")
_OF_EVALUATE += tuple(f"trainer.{name}" for name in READ_BY_EVALUATE)
"""How the words begin that mean the same to `evaluate`."""
SAMPLES_AT_ONCE = 32
"""Batch size of the sample captions shown at validation."""
T = TypeVar("T")


def run(config: TrainConfig, assembly: Assembly) -> dict | None:
    """Train, judge, and write the run folder; gives metrics.json's content on rank 0, None elsewhere."""
    launch.quieten_lightning()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    started = time.perf_counter()
    parts, model, text, num_steps = assembly.parts, assembly.model, assembly.text, assembly.num_steps
    maker = sample_maker(model, text)
    data = training_data(config, assembly, maker)
    folder = run_folder()
    if config.check_only:
        cast_unloaded(model, frozen_dtype(find_precision(config.trainer.precision, config.trainer.accelerator)))
        say(*startup_tables(config, model, data, folder, num_steps))
        say("All checks passed; no weight was loaded. Without check_only=true it trains.")
        return None

    checkpoint = find_checkpoint(config, data, folder, num_steps)
    rank_zero_only(write_config)(config, folder)
    rank_zero_only(write_command)(folder)
    strategy = build_strategy(config.trainer, config.plugins)
    module = VisLlamaModule(model, config.optim, num_steps, config.plugins, weights_loader(config, assembly, strategy))
    captioners = {name: Captioner(maker, config.decoding, SAMPLES_AT_ONCE) for name, maker in data.makers.items()}
    loggers = build_loggers(config.logger, config.plugins, folder, checkpoint.step if checkpoint else 0)
    callbacks = build_callbacks(config, folder, captioners, count_sizes(model))
    trainer = build_trainer(config, strategy, num_steps, folder, callbacks, loggers)
    fit_started = time.perf_counter()
    seconds = {"setup_seconds": fit_started - started}
    try:
        with closing(loggers):
            for logger in loggers:
                logger.log_hyperparams(to_dict(config) | {"provenance": provenance()})
            trainer.fit(module, data, ckpt_path=checkpoint and checkpoint.path, weights_only=True)
            if trainer.interrupted:
                raise KeyboardInterrupt
            if trainer.global_step < num_steps:
                say(f"Stopped early, at step {trainer.global_step} of {num_steps}")
            if find_callback(trainer, LastValidation).is_missing(trainer):
                trainer.validate(module, data, verbose=False)
            seconds["fit_seconds"] = time.perf_counter() - fit_started
            if trainer.is_global_zero or strategy.is_sharded:
                save_weights(model, parts, text, folder / "weights")
            log_weights(loggers, folder / "weights")
            metrics: dict = {"evaluations": {}, "train": training_facts(trainer, config)}
            rank_zero_only(write_json)(folder / "metrics.json", metrics)  # whatever the judge meets, this much is told
            if config.judge and config.judged_on and PRUNED not in metrics["train"]:
                judge_started = time.perf_counter()
                settings = JudgeSettings.of_config(config)
                sources = assembly.judged_sources
                key = hash_weights(folder / "weights") if trainer.is_global_zero else ""  # the first rank alone logs
                metrics["evaluations"] = judge(model, maker, config.judged_on, sources, settings, folder, key)
                seconds["judge_seconds"] = time.perf_counter() - judge_started
                log_results(loggers, metrics["evaluations"], folder, trainer.global_step)
    except preemption.Preempted as left:
        launch.wait_for_ranks()
        preemption.requeue(left.what)
        raise
    except RuntimeError as error:
        killed = explain_killed(error)
        if killed is None:
            raise
        raise killed from error
    finally:
        launch.forget_ranks()
    launch.wait_for_ranks()
    if not trainer.is_global_zero:
        return None

    metrics["train"] |= {name: round(value, 1) for name, value in seconds.items()}
    metrics["provenance"] = provenance(
        seed=config.seed,
        precision=find_precision(config.trainer.precision, config.trainer.accelerator),
        overrides=invocation().overrides,
        model=parts,
        init_from=config.init_from,
        num_ranks=trainer.world_size,
        plugins=config.plugins,
    )
    write_json(folder / "metrics.json", metrics)
    write_index(folder)
    again = shlex.join(evaluate_overrides(config, folder))
    say(
        ", ".join(f"{name.removesuffix('_seconds')} {value:.0f} s" for name, value in seconds.items()),
        f"Wrote {folder}: weights/ metrics.json; index.html shows and links all",
        *([f"Judge it again, or elsewhere:  visllama evaluate {again}"] if config.evaluation else []),
    )
    return metrics


def cast_unloaded(model: VisLlama, dtype: torch.dtype) -> None:
    """Give a model without weights the dtypes that it would be loaded in, for its table.

    Args:
        model: The model, on the meta device, in the dtypes of its files.
        dtype: The dtype of frozen weights.
    """
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(part_dtype(model, part_of(name), dtype))


def weights_loader(config: TrainConfig, assembly: Assembly, strategy: Strategy) -> Callable[[], None]:
    """Return what loads the weights, on each rank once all have started, and puts the model where it is to be."""
    model, dtype = assembly.model, frozen_dtype(find_precision(config.trainer.precision, config.trainer.accelerator))

    def load() -> None:
        model.load_base_weights(dtype, as_stored=strategy.is_sharded)
        if assembly.initial:
            load_tensors(model, Path(config.init_from), assembly.initial)
            say(f"Starting from {config.init_from}, which trained {', '.join(assembly.initial['trained'])}")
        if config.trainer.activation_checkpointing:
            compute_again(model)
        strategy.prepare(model, dtype)

    return load


def count_sizes(model: VisLlama) -> Shapes | None:
    """Return the sizes by which a model's arithmetic is counted; None where parts of the user's own do not show them.

    Args:
        model: The model, before a strategy has cut it into parts.
    """
    try:
        return read_shapes(model)
    except Exception as error:  # of whatever type a class of somebody else's raises
        log(f"The model's arithmetic is not counted: {type(error).__name__}: {error}")
        return None


def find_checkpoint(config: TrainConfig, data: TrainingData, folder: Path, num_steps: int) -> Checkpoint | None:
    """Return the checkpoint to go on from.

    The first rank looks whether it is whole, and the others take what it took.
    """
    found = checkpoints(folder) if config.resume else []
    if not is_first_rank():
        return found[0] if found else None
    remove_leftovers(folder)
    checkpoint, damaged = newest_whole(folder) if found else (None, [])
    for damage in damaged:
        say(f"A checkpoint is damaged, and passed over: {damage}")
    if checkpoint:
        state = read_loader_state(checkpoint.path)
        check_order(state["rests_on"], data.rests_on, config.data.allow_reorder)
        say(f"Going on from step {checkpoint.step} of {num_steps}: {checkpoint.path}")
    elif config.resume:
        say(f"resume={config.resume}: it was stopped before its first checkpoint, and begins again")
    return checkpoint


def write_config(config: TrainConfig, folder: Path) -> None:
    """Write `config.yaml`, whole or not at all: another rank may be reading it."""
    write_whole(folder / "config.yaml", to_yaml(config))


def training_data(config: TrainConfig, assembly: Assembly, maker: SampleMaker) -> TrainingData:
    """Make the data module of a run; a source may have a prompt of its own."""
    pad, size_px = maker.tokenizer.pad_token_id, maker.transform.size_px
    prompts = {name: node.get("prompt") for name, node in config.data.sources.items()}
    return TrainingData(
        train=assembly.train,
        val=assembly.val,
        makers={name: maker if prompt is None else maker.with_prompt(prompt) for name, prompt in prompts.items()},
        collator=Collator(pad, maker.num_image_tokens, size_px, config.micro_batch_size),
        order=assembly.order,
        num_steps=assembly.num_steps,
        num_workers=config.data.num_workers,
        num_val_records=config.data.num_val_records,
        allow_reorder=config.data.allow_reorder,
    )


def evaluate_overrides(config: TrainConfig, folder: Path) -> list[str]:
    """Name what `evaluate` needs to judge a run again as it was judged: what was typed of that, where data lie."""
    running = invocation()
    typed = [word for word in running.overrides if word.lstrip("+~").startswith(_OF_EVALUATE)]
    keys = {key_of(word) for word in typed}
    words = [override("weights", folder / "weights")]
    if "evaluation" not in keys and list(config.evaluation) != ["scenes_caption"]:
        words.append(f"evaluation=[{','.join(config.evaluation)}]")
    for name, evaluation in config.evaluation.items():
        as_rival = config.judged_on.get(f"{name}_{SELECTING}")
        source = evaluation.source if as_rival is None else as_rival["source"]
        if as_rival is not None and evaluation.split != SELECTING:
            words.append(f"evaluation.{name}.split={SELECTING}")  # test is for the best job alone
        for key in ("path", "val_path", "val_fraction"):
            full_key = f"evaluation.{name}.source.{key}"
            if source.get(key) and full_key not in keys:
                words.append(override(full_key, source[key]))
    return [*running.options, *words, *typed]


def build_trainer(
    config: TrainConfig,
    strategy: Strategy,
    num_steps: int,
    folder: Path,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
) -> pl.Trainer:
    """Make Lightning's Trainer; the run is one long epoch, and one of its batches is one optimizer step."""
    launch.launch_our_way()
    precision = find_precision(config.trainer.precision, config.trainer.accelerator)
    interval = validation_interval(config.trainer.val_check_interval, num_steps)
    # By its name, the sharded strategy does not know it.
    plugins = [*launch.environments(), *([DoublePrecision()] if precision == "64-true" else [])]
    trainer = pl.Trainer(
        **launch.places(config.trainer),
        strategy=strategy,
        # Lightning's other precisions convert what trains: updates of a small rate are lost in a bf16 weight.
        precision=precision if precision == "bf16-mixed" else None,
        max_epochs=1,
        max_steps=num_steps,
        val_check_interval=interval,
        limit_val_batches=1.0 if interval else 0,
        log_every_n_steps=config.trainer.log_every_steps,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=False,  # `StepProgress` shows it
        logger=list(loggers),
        profiler=build(config.profiler, config.plugins) if config.profiler else None,
        plugins=plugins,
        callbacks=list(callbacks),
        default_root_dir=folder,
    )
    # Lightning answers SIGTERM by a collective inside its handler, where ranks hang, and asks the GPU each step whether
    # there was one: `preemption` does neither.
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


def validation_interval(chosen: float | None, num_steps: int) -> int | None:
    """Return the number of steps between two validations; None validates never.

    Args:
        chosen: `trainer.val_check_interval`: up to 1 a part of the run, else a number of steps.
        num_steps: The steps of the run.
    """
    if chosen is None:
        return None
    steps = round(num_steps * chosen) if chosen <= 1 else int(chosen)
    return min(max(1, steps), num_steps)


def training_facts(trainer: pl.Trainer, config: TrainConfig) -> dict:
    """Return metrics.json's `train`: what was done, and the last losses."""
    points = find_callback(trainer, Curves).points
    logged = {name: values[-1][1] for name, values in points.items()}  # also those before a resume
    logged |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    facts = {"steps": trainer.global_step, "samples": trainer.global_step * config.stage.global_batch_size}
    rate = find_callback(trainer, Throughput).samples_per_second
    if rate is not None:
        facts["samples_per_second"] = round(rate, 1)
    for callback in trainer.callbacks:
        if isinstance(callback, KeepBest):
            facts["weights_of_step"] = callback.step
        if isinstance(callback, Prune) and callback.step is not None:
            facts[PRUNED] = callback.step
    watch = find_callback(trainer, FrozenWeights)
    facts["frozen_sha256"] = watch.before  # and after: the run would have stopped with an error
    bad = find_callback(trainer, BadRecords)
    for name, seen in (("bad_records", bad.train), ("bad_val_records", bad.val)):
        if seen.counts:
            facts[name] = dict(seen.counts)
    # A loss that is not finite is none: its step was not taken, and log.txt names it.
    return facts | {name: value for name, value in logged.items() if "/loss" in name and math.isfinite(value)}


def find_callback(trainer: pl.Trainer, kind: type[T]) -> T:
    """Return the trainer's callback of a class."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, kind))
