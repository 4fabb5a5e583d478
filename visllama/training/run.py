"""Train the model of an assembly under Lightning, judge it, and write its weights and results to the run's folder."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import DoublePrecision
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
from visllama.parallel.strategy import VisLlamaStrategy, build_strategy
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
from visllama.training.lightning_parts import connected
from visllama.training.module import VisLlamaModule

_OF_EVALUATE = ("evaluation", "decoding", "paths.models", "plugins", "trainer=", "trainer/strategy")
_OF_EVALUATE += tuple(f"trainer.{name}" for name in READ_BY_EVALUATE)
"""Beginnings of the overrides that mean the same to `evaluate` as to `train`."""
SAMPLES_AT_ONCE = 32
"""The number of captions that are written at once for the samples shown at validation."""
T = TypeVar("T")


def run(config: TrainConfig, assembly: Assembly) -> dict | None:
    """Train the model, judge it by the config's evaluations, and write weights and results to the run's folder.

    It resumes from the newest checkpoint in the folder if `config.resume` is given. With `config.check_only` it only
    prints the tables of the run. With several devices it starts the other ranks, each of which calls this too. The
    folder is that of the running Hydra job.

    Args:
        config: The configuration of the run, resolved.
        assembly: The parts of the run, as `build_assembly` returns them. Its model is trained in place.

    Returns:
        The content of metrics.json on the first rank; None on other ranks and with `check_only`.

    Raises:
        Preempted: If the run was asked to leave, and has saved.
        ConfigError: If no checkpoint can be resumed from or written, or too many records are bad.
        FloatingPointError: If too many steps in a row have a loss or gradient that is not finite.
    """
    launch.quieten_lightning()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    started = time.perf_counter()

    model = assembly.model
    num_steps = assembly.num_steps
    maker = sample_maker(model, assembly.text)
    data = training_data(config, assembly, maker)
    folder = run_folder()

    if config.check_only:
        cast_unloaded(model, _find_frozen_dtype(config))
        say(*startup_tables(config, model, data, folder, num_steps))
        say("All checks passed; no weight was loaded. Without check_only=true it trains.")
        return None

    checkpoint = find_checkpoint(config, data, folder, num_steps)
    rank_zero_only(write_config)(config, folder)
    rank_zero_only(write_command)(folder)

    strategy = build_strategy(config.trainer, config.plugins)
    load = weights_loader(config, assembly, strategy)
    module = VisLlamaModule(model, config.optim, num_steps, config.plugins, load)

    captioners = {}
    for name, source_maker in data.makers.items():
        captioners[name] = Captioner(source_maker, config.decoding, SAMPLES_AT_ONCE)

    first_step = checkpoint.step if checkpoint else 0
    loggers = build_loggers(config.logger, config.plugins, folder, first_step)
    callbacks = build_callbacks(config, folder, captioners, count_sizes(model))
    trainer = build_trainer(config, strategy, num_steps, folder, callbacks, loggers)

    fit_started = time.perf_counter()
    seconds = {"setup_seconds": fit_started - started}
    try:
        with closing(loggers):
            for logger in loggers:
                logger.log_hyperparams(to_dict(config) | {"provenance": provenance()})
            _fit(trainer, module, data, checkpoint, num_steps)
            seconds["fit_seconds"] = time.perf_counter() - fit_started

            # Under a sharded strategy all ranks have to take part; the first one writes.
            if trainer.is_global_zero or strategy.is_sharded:
                save_weights(model, assembly.parts, assembly.text, folder / "weights")
            log_weights(loggers, folder / "weights")

            # Written before the judging too: whatever that meets, the facts of the training are there.
            metrics: dict = {"evaluations": {}, "train": training_facts(trainer, config)}
            rank_zero_only(write_json)(folder / "metrics.json", metrics)

            if config.judge and config.judged_on and PRUNED not in metrics["train"]:
                judge_started = time.perf_counter()
                metrics["evaluations"] = _judge(config, assembly, maker, folder, trainer.is_global_zero)
                seconds["judge_seconds"] = time.perf_counter() - judge_started
                log_results(loggers, metrics["evaluations"], folder, trainer.global_step)
    except preemption.Preempted as preempted:
        # Requeued earlier, the job could begin again while ranks of this one still write.
        launch.wait_for_ranks()
        preemption.requeue(preempted.what)
        raise
    except RuntimeError as error:
        # torch's error about a loading process that has ended does not say what to do.
        killed = explain_killed(error)
        if killed is None:
            raise
        raise killed from error
    finally:
        launch.forget_ranks()

    launch.wait_for_ranks()
    if not trainer.is_global_zero:
        return None

    for name, value in seconds.items():
        metrics["train"][name] = round(value, 1)
    metrics["provenance"] = _provenance_of(config, assembly, trainer.world_size)
    write_json(folder / "metrics.json", metrics)
    write_index(folder)

    _print_end(config, folder, seconds)
    return metrics


def _provenance_of(config: TrainConfig, assembly: Assembly, num_ranks: int) -> dict:
    """Return the `provenance` entry of a training's metrics.json."""
    return provenance(
        seed=config.seed,
        precision=find_precision(config.trainer.precision, config.trainer.accelerator),
        overrides=invocation().overrides,
        model=assembly.parts,
        init_from=config.init_from,
        num_ranks=num_ranks,
        plugins=config.plugins,
    )


def _print_end(config: TrainConfig, folder: Path, seconds: Mapping[str, float]) -> None:
    """Print how long the parts of a run took, which files it wrote, and the command that judges it again."""
    times = []
    for name, value in seconds.items():
        part = name.removesuffix("_seconds")
        times.append(f"{part} {value:.0f} s")

    lines = [", ".join(times), f"Wrote {folder}: weights/ metrics.json; index.html shows and links all"]
    if config.evaluation:
        words = evaluate_overrides(config, folder)
        command = shlex.join(["visllama", "evaluate", *words])
        lines.append(f"Judge it again, or elsewhere:  {command}")
    say(*lines)


def _fit(
    trainer: pl.Trainer, module: VisLlamaModule, data: TrainingData, checkpoint: Checkpoint | None, num_steps: int
) -> None:
    """Train to the last step or to an early stop, and validate the last step if that was not done.

    Args:
        trainer: The run's trainer.
        module: The module to train.
        data: The data module of the run.
        checkpoint: The checkpoint to resume from; None begins at step 0.
        num_steps: The number of steps of the whole run, for the message about an early stop.
    """
    trainer.fit(module, data, ckpt_path=checkpoint.path if checkpoint else None, weights_only=True)

    # Lightning 2.6.5 and 2.6.6 exit or raise after an interrupt, and do not come here. With a version that returned,
    # half-trained weights would be saved and judged.
    if trainer.interrupted:
        raise KeyboardInterrupt

    if trainer.global_step < num_steps:
        say(f"Stopped early, at step {trainer.global_step} of {num_steps}")

    if find_callback(trainer, LastValidation).is_missing(trainer):
        trainer.validate(module, data, verbose=False)


def _judge(config: TrainConfig, assembly: Assembly, maker: SampleMaker, folder: Path, is_global_zero: bool) -> dict:
    """Judge the trained model on all ranks, write the results to the folder, and return them by evaluation."""
    settings = JudgeSettings.of_config(config)
    # Only the first rank writes the log of predictions, which the key is for.
    weights_key = hash_weights(folder / "weights") if is_global_zero else ""

    return judge(assembly.model, maker, config.judged_on, assembly.judged_sources, settings, folder, weights_key)


def _find_frozen_dtype(config: TrainConfig) -> torch.dtype:
    """Return the dtype in which the run loads weights that do not train."""
    precision = find_precision(config.trainer.precision, config.trainer.accelerator)
    return frozen_dtype(precision)


def cast_unloaded(model: VisLlama, dtype: torch.dtype) -> None:
    """Set the dtype of each parameter of a model without weights, in place, to that in which it would be loaded.

    The table of the model's parts then shows the memory that they will take.

    Args:
        model: The model, on the meta device.
        dtype: The dtype of frozen parts; a trained part gets it, or fp32 if that is wider.
    """
    for name, parameter in model.named_parameters():
        dtype_of_part = part_dtype(model, part_of(name), dtype)
        parameter.data = parameter.data.to(dtype_of_part)


def weights_loader(config: TrainConfig, assembly: Assembly, strategy: VisLlamaStrategy) -> Callable[[], None]:
    """Return a function without arguments that loads a run's weights into its model, and cuts the model if sharded.

    Nothing is read before the function is called. Each rank calls it once, after all ranks have started. It loads the
    base models' weights, then those of `init_from`, and sets up activation checkpointing.

    Args:
        config: The configuration of the run.
        assembly: The parts of the run, with the model and the description of `init_from`.
        strategy: The strategy of the run, which cuts the model over ranks if it is sharded.
    """
    model = assembly.model
    dtype = _find_frozen_dtype(config)

    def load() -> None:
        model.load_base_weights(dtype, as_stored=strategy.is_sharded)

        if assembly.initial and config.init_from:
            load_tensors(model, Path(config.init_from), assembly.initial)
            trained_parts = ", ".join(assembly.initial["trained"])
            say(f"Starting from {config.init_from}, which trained {trained_parts}")

        if config.trainer.activation_checkpointing:
            compute_again(model)

        strategy.prepare(model, dtype)

    return load


def count_sizes(model: VisLlama) -> Shapes | None:
    """Return the sizes of a model from which floating-point operations are counted; None if they cannot be read.

    If reading them raises an exception, as a class of the user's own may do, the exception is only written to the log.

    Args:
        model: The model, with or without weights, before a strategy has cut its tensors over ranks.
    """
    try:
        return read_shapes(model)
    # A class of the user's may raise any type.
    except Exception as error:
        log(f"The model's arithmetic is not counted: {type(error).__name__}: {error}")
        return None


def find_checkpoint(config: TrainConfig, data: TrainingData, folder: Path, num_steps: int) -> Checkpoint | None:
    """Return the checkpoint in a run's folder to resume from; None if the run begins at step 0.

    Without `config.resume` it is None. The first rank reads the checkpoints, prints which damaged ones it passes over,
    and removes what is half written. The other ranks return the one of the latest step unread; the strategy's
    `load_checkpoint` later gives them the first rank's choice.

    Args:
        config: The configuration of the run.
        data: The data module of the run, whose order of samples has to be that of the checkpoint.
        folder: The run's folder.
        num_steps: The number of steps of the whole run, for the printed message.

    Raises:
        ConfigError: If all checkpoints are damaged, or the settings that fix the order of the data have changed.
    """
    existing = checkpoints(folder) if config.resume else []
    if not is_first_rank():
        return existing[0] if existing else None

    remove_leftovers(folder)
    checkpoint = None
    if existing:
        checkpoint, damaged_checkpoints = newest_whole(folder)
        for description in damaged_checkpoints:
            say(f"A checkpoint is damaged, and passed over: {description}")

    if checkpoint:
        state = read_loader_state(checkpoint.path)
        check_order(state["rests_on"], data.rests_on, config.data.allow_reorder)
        say(f"Going on from step {checkpoint.step} of {num_steps}: {checkpoint.path}")
    elif config.resume:
        say(f"resume={config.resume}: it was stopped before its first checkpoint, and begins again")

    return checkpoint


def write_config(config: TrainConfig, folder: Path) -> None:
    """Write a run's configuration as `config.yaml` into its folder, in one move: no other rank can read half a file."""
    write_whole(folder / "config.yaml", to_yaml(config))


def training_data(config: TrainConfig, assembly: Assembly, maker: SampleMaker) -> TrainingData:
    """Build the data module that loads a run's training and validation batches; nothing is loaded yet.

    Args:
        config: The configuration of the run.
        assembly: The parts of the run, with its sources and their order.
        maker: The object that makes samples of records, with the prompt of `stage.prompt`. A source with a `prompt` in
            its config gets a copy of it with that prompt.
    """
    makers = {}
    for name, node in config.data.sources.items():
        prompt = node.get("prompt")
        makers[name] = maker if prompt is None else maker.with_prompt(prompt)

    collator = Collator(
        maker.tokenizer.pad_token_id, maker.num_image_tokens, maker.transform.size_px, config.micro_batch_size
    )

    return TrainingData(
        train=assembly.train,
        val=assembly.val,
        makers=makers,
        collator=collator,
        order=assembly.order,
        num_steps=assembly.num_steps,
        num_workers=config.data.num_workers,
        num_val_records=config.data.num_val_records,
        allow_reorder=config.data.allow_reorder,
    )


def evaluate_overrides(config: TrainConfig, folder: Path) -> list[str]:
    """Return the command-line words after `visllama evaluate` by which a run is judged again as it was judged.

    These are options of the running job's command line (`--config-dir DIR`), the run's weights, its evaluations, the
    paths of their data, and the job's `key=value` words that mean the same to `evaluate`. They are not quoted for a
    shell.

    Args:
        config: The configuration of the run.
        folder: The run's folder, in which `weights/` lies.
    """
    running = invocation()
    typed_words = [word for word in running.overrides if word.lstrip("+~").startswith(_OF_EVALUATE)]
    typed_keys = {key_of(word) for word in typed_words}

    words = [override("weights", folder / "weights")]
    evaluations = list(config.evaluation)
    # The embedded world is the default of `evaluate`.
    if "evaluation" not in typed_keys and evaluations != ["scenes_caption"]:
        listed = ",".join(evaluations)
        words.append(f"evaluation=[{listed}]")

    for name, evaluation in config.evaluation.items():
        source = evaluation.source
        as_rival = config.judged_on.get(f"{name}_{SELECTING}")
        if as_rival is not None:
            source = as_rival["source"]
            # A rival in a sweep is judged on validation: test is for the best job alone.
            if evaluation.split != SELECTING:
                words.append(f"evaluation.{name}.split={SELECTING}")

        for key in ("path", "val_path", "val_fraction"):
            full_key = f"evaluation.{name}.source.{key}"
            value = source.get(key)
            if value and full_key not in typed_keys:
                words.append(override(full_key, value))

    return [*running.options, *words, *typed_words]


def build_trainer(
    config: TrainConfig,
    strategy: VisLlamaStrategy,
    num_steps: int,
    folder: Path,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
) -> pl.Trainer:
    """Build Lightning's `Trainer` of a run, for which the run is one epoch and each batch is one optimizer step.

    It also makes Lightning start further ranks as `launch_our_way` says, and turns off Lightning's handling of signals.

    Args:
        config: The configuration of the run, with the groups `trainer` and `profiler`.
        strategy: The strategy of the run, as `build_strategy` returns it.
        num_steps: The number of optimizer steps.
        folder: The run's folder.
        callbacks: The callbacks, in the order in which they are called.
        loggers: The trackers of the run.
    """
    launch.launch_our_way()

    precision = find_precision(config.trainer.precision, config.trainer.accelerator)
    interval = validation_interval(config.trainer.val_check_interval, num_steps)

    # As an object, because the sharded strategy does not know this precision by its name.
    precision_plugins = [DoublePrecision()] if precision == "64-true" else []

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
        # `StepProgress` has one.
        enable_progress_bar=False,
        logger=list(loggers),
        profiler=build(config.profiler, config.plugins) if config.profiler else None,
        plugins=[*launch.environments(), *precision_plugins],
        callbacks=list(callbacks),
        default_root_dir=folder,
    )

    # Lightning answers SIGTERM by a collective inside its handler, where ranks hang, and asks the GPU each step whether
    # there was one: `preemption` does neither.
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


def validation_interval(chosen: float | None, num_steps: int) -> int | None:
    """Return the number of steps between two validations, from 1 to `num_steps`; None if nothing is validated.

    Args:
        chosen: The value of `trainer.val_check_interval`: up to 1 it is a fraction of the run's steps, above 1 a number
            of steps, and None means no validation.
        num_steps: The number of optimizer steps of the run.
    """
    if chosen is None:
        return None

    num_steps_between = round(num_steps * chosen) if chosen <= 1 else int(chosen)
    return min(max(1, num_steps_between), num_steps)


def training_facts(trainer: pl.Trainer, config: TrainConfig) -> dict[str, object]:
    """Return the `train` entry of metrics.json, read from the trainer and its callbacks after the training.

    It holds `steps`, `samples` (whole batches of all steps), `frozen_sha256` (a hash for each base model), and the last
    finite value of each logged loss by its name, as `val/loss`. Where they apply it also holds `samples_per_second`,
    `weights_of_step` (with `KeepBest`), `pruned_step` (after which a search ended the run), and the counts of samples
    that were masked in training (`bad_records`) and in the last validation (`bad_val_records`).

    Args:
        trainer: The run's trainer, after `fit`.
        config: The configuration of the run, for the batch size.
    """
    num_steps = trainer.global_step
    facts: dict[str, object] = {
        "steps": num_steps,
        "samples": num_steps * config.stage.global_batch_size,
    }

    rate = find_callback(trainer, Throughput).samples_per_second
    if rate is not None:
        facts["samples_per_second"] = round(rate, 1)

    for callback in connected(trainer).callbacks:
        if isinstance(callback, KeepBest):
            facts["weights_of_step"] = callback.step
        if isinstance(callback, Prune) and callback.step is not None:
            facts[PRUNED] = callback.step

    # The hashes before training are those after it: otherwise the run would have stopped with an error.
    facts["frozen_sha256"] = find_callback(trainer, FrozenWeights).before

    bad_records = find_callback(trainer, BadRecords)
    for name, seen in (("bad_records", bad_records.train), ("bad_val_records", bad_records.val)):
        if seen.counts:
            facts[name] = dict(seen.counts)

    for name, value in _last_figures(trainer).items():
        # A step whose loss is not finite was not taken, and log.txt names it.
        if "/loss" in name and math.isfinite(value):
            facts[name] = value

    return facts


def _last_figures(trainer: pl.Trainer) -> dict[str, float]:
    """Return the last value of each figure that was logged, also before a resume, by the figure's name."""
    figures = {}
    # Points remember values from before a resume too; the trainer has the newest ones.
    points_of_figures = find_callback(trainer, Curves).points
    for name, points in points_of_figures.items():
        _, last_value = points[-1]
        figures[name] = last_value

    for name, value in trainer.callback_metrics.items():
        figures[name] = float(value)
    return figures


def find_callback(trainer: pl.Trainer, kind: type[T]) -> T:
    """Return the first of a trainer's callbacks that is of a class.

    Raises:
        StopIteration: If there is none.
    """
    return next(callback for callback in connected(trainer).callbacks if isinstance(callback, kind))
