"""Whether the values of a group of keys are in their ranges, and fit together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from visllama.config.choices import (
    ACCELERATORS,
    MOST_THREADS,
    OPTIM_TYPES,
    PRECISIONS,
    SCHEDULES,
    SPLITS,
    TASKS,
    TOKENIZERS,
    TRAINABLE_PARTS,
    choose,
)
from visllama.errors import ConfigError, require
from visllama.plugins import ALLOWED_TARGETS
from visllama.signatures import matches_hint, wrong_type
from visllama.text.templates import OF_TOKENIZER, find_template

_FILES = ("images", "references", "questions")
"""Keys of an evaluation that name what its source reads."""


def check_stage(stage: DictConfig) -> None:
    """Refuse values of `stage` that are out of range, or name a part twice or one that there is not.

    Raises:
        ConfigError: Naming the key, the value found, and what to give.
    """
    for name in stage.trainable:
        require(name in TRAINABLE_PARTS, f"stage.trainable names {name!r}: choose from {', '.join(TRAINABLE_PARTS)}")
    require(len(set(stage.trainable)) == len(stage.trainable), f"stage.trainable={stage.trainable}: a part comes twice")
    require(len(stage.trainable) > 0, "stage.trainable=[] trains nothing: name at least the connector")

    check_template("stage.template", stage.template)
    for name in ("global_batch_size", "epochs", "max_text_tokens"):
        require(0 < stage[name] < math.inf, f"stage.{name}={stage[name]}: must be more than 0, and finite")
    budget = stage.num_samples
    require(budget is None or budget > 0, f"stage.num_samples={budget}: must be more than 0, or null for stage.epochs")


def check_data(data: DictConfig) -> None:
    """Refuse values of `data` that are out of range, and sources without a share or with a prompt that is no text.

    Raises:
        ConfigError: Naming the key, the value found, and what to give.
    """
    require(len(data.sources) > 0, "data.sources={} holds no data: choose one, as data=scenes")
    for name, node in data.sources.items():
        key = f"data.sources.{name}"
        weight = node.get("weight", 1.0)
        require(
            matches_hint(weight, float) and 0 < weight < math.inf,
            f"{key}.weight={weight}: must be a number more than 0: the share of the samples beside other sources",
        )
        prompt = node.get("prompt")
        require(prompt is None or isinstance(prompt, str), wrong_type(f"{key}.prompt", prompt, str | None))

    require(data.num_workers >= 0, f"data.num_workers={data.num_workers}: must be 0 or more")
    num_val = data.num_val_records
    require(num_val is None or num_val > 0, f"data.num_val_records={num_val}: must be more than 0, or null for all")
    fraction = data.max_bad_fraction
    require(0 <= fraction <= 1, f"data.max_bad_fraction={fraction}: must be in [0, 1]")
    for name in ("max_consecutive_bad", "window_shards"):
        require(data[name] > 0, f"data.{name}={data[name]}: must be more than 0")


def check_adapter(cfg: DictConfig) -> None:
    """Refuse an adapter that does not train, or trains and is not there.

    Raises:
        ConfigError: Naming the keys and what to do.
    """
    has_lora, trainable = cfg.model.get("lora") is not None, cfg.stage.trainable
    require(has_lora or "adapter" not in trainable,
            "stage.trainable names 'adapter', but the model has none: choose one, as model/lora=qv")  # fmt: skip
    require(not has_lora or "adapter" in trainable,
            f"model.lora is given, and stage.trainable={list(trainable)} would leave it as nothing: name adapter "
            f"there, or choose model/lora=none")  # fmt: skip
    require(not has_lora or "language_model" not in trainable,
            "stage.trainable names language_model beside model.lora: train it whole (model/lora=none), or by its "
            "adapter")  # fmt: skip


def check_template(key: str, template: object) -> None:
    """Refuse a template that has neither a known name nor the strings of one.

    Raises:
        ConfigError: Naming the key and what there is.
    """
    chosen = OmegaConf.to_container(template, resolve=True) if isinstance(template, DictConfig) else template
    require(isinstance(chosen, (str, dict)), f"{key}={chosen}: give a template's name, or its strings")
    if chosen == OF_TOKENIZER:  # the tokenizer is not there yet
        return

    try:
        find_template(chosen)
    except ConfigError as error:
        raise ConfigError(f"{key.rpartition('.')[0]}.{error}") from error


def check_trainer(trainer: DictConfig) -> None:
    """Refuse values of `trainer` that no machine could have.

    Raises:
        ConfigError: Naming the key, the value found, and what to give.
    """
    choose("trainer.accelerator", trainer.accelerator, ACCELERATORS)
    choose("trainer.precision", trainer.precision, PRECISIONS)

    devices = trainer.devices
    is_count = matches_hint(devices, int) and (devices > 0 or devices == -1)
    is_list = isinstance(devices, ListConfig) and len(devices) > 0 and all(matches_hint(d, int) for d in devices)
    require(
        is_count or is_list or devices == "auto",
        f"trainer.devices={devices}: give a number of devices, a list of their indices, or auto",
    )
    nodes = trainer.num_nodes
    require(
        nodes == "auto" or (matches_hint(nodes, int) and nodes > 0),
        f"trainer.num_nodes={nodes}: give a number, or auto",
    )

    for name in ("log_every_steps", "keep_checkpoints", "max_skipped_steps", "timeout_s", "threads"):
        require(0 < trainer[name] < math.inf, f"trainer.{name}={trainer[name]}: must be more than 0, and finite")
    require(trainer.threads <= MOST_THREADS, f"trainer.threads={trainer.threads}: must be at most {MOST_THREADS}")
    code = trainer.preempted_exit_code
    require(0 < code < 256, f"trainer.preempted_exit_code={code}: must be in [1, 255]")

    for name in ("checkpoint_every_steps", "max_steps"):
        steps = trainer[name]
        require(steps is None or steps > 0, f"trainer.{name}={steps}: must be more than 0, or null")
    interval = trainer.val_check_interval
    require(
        interval is None or 0 < interval <= 1 or (1 < interval < math.inf and interval == int(interval)),
        f"trainer.val_check_interval={interval}: must be a part of the run in (0, 1], a whole number of steps, or null",
    )


def check_evaluations(evaluations: DictConfig) -> None:
    """Refuse evaluations whose task, split, metrics, controls or template do not exist.

    Raises:
        ConfigError: Naming the key, the value found, and what there is.
    """
    for name, evaluation in evaluations.items():
        key = f"evaluation.{name}"
        _check_files(key, evaluation)
        choose(f"{key}.task", evaluation.task, tuple(TASKS))
        choose(f"{key}.split", evaluation.split, SPLITS)

        metrics, controls = TASKS[evaluation.task]
        for metric in evaluation.metrics:
            others = [task for task, (known, _) in TASKS.items() if metric in known and task != evaluation.task]
            require(not others, f"{key}.task={evaluation.task}: {key}.metrics names {metric}, which is of "
                     f"{''.join(others)}: it has {', '.join(metrics)}")  # fmt: skip
            choose(f"{key}.metrics", metric, metrics)
        for control in evaluation.controls:
            choose(f"{key}.controls", control, controls)

        if evaluation.template is not None:
            check_template(f"{key}.template", evaluation.template)
        choose(f"{key}.tokenizer", evaluation.tokenizer, TOKENIZERS)
        frequencies = evaluation.document_frequencies
        require(
            frequencies is None or Path(frequencies).is_file(),
            f"{key}.document_frequencies={frequencies}: no such file: give references, as COCO's annotations",
        )
        _check_picture_metrics(key, evaluation)
        require(
            evaluation.num_images is None or evaluation.num_images > 1,
            f"{key}.num_images={evaluation.num_images}: must be more than 1, or null for all",
        )


def _check_picture_metrics(key: str, evaluation: DictConfig) -> None:
    """Refuse CHAIR without what was drawn in the pictures, and files that no metric reads."""
    has_chair = "CHAIR" in evaluation.metrics
    require(
        not has_chair or evaluation.instances is not None,
        f"{key}.metrics names CHAIR: give {key}.instances=FILE, COCO's instance annotations of the split",
    )
    for name in ("instances", "object_names"):
        value = evaluation[name]
        require(value is None or has_chair, f"{key}.{name}={value}: only CHAIR reads it: name it in {key}.metrics")
        require(value is None or Path(value).is_file(), f"{key}.{name}={value}: no such file")
    require(
        evaluation.clip is None or "CLIPScore" in evaluation.metrics,
        f"{key}.clip={evaluation.clip}: only CLIPScore reads it: name it in {key}.metrics",
    )


def _check_files(key: str, evaluation: DictConfig) -> None:
    """Refuse files that an evaluation lacks, or that its source does not read."""
    source = {} if OmegaConf.is_missing(evaluation, "source") else evaluation.source
    is_ours = str(source.get("_target_")).startswith("visllama.")  # a class of the user's may do without
    lacking = [f"{key}.{name}" for name in _FILES if is_ours and name in source and source[name] is None]
    require(not lacking, f"no value for {', '.join(lacking)}: give {' '.join(f'{name}=PATH' for name in lacking)}")
    for name in _FILES:
        value = evaluation[name]
        require(
            value is None or source.get(name) == value,
            f"{key}.{name}={value}: its source reads no such file: evaluation=[files] captions a folder of pictures "
            f"with images and references, evaluation=[files_vqa] asks questions about it",
        )


def check_optim(optim: DictConfig, trainable: Sequence[str]) -> None:
    """Refuse values of `optim` that are of a wrong type, out of range, or about a part that does not train.

    Raises:
        ConfigError: Naming the key, the value found, and what to give.
    """
    for name, hint in OPTIM_TYPES.items():
        require(name in optim, f"no value for optim.{name}: give it as optim.{name}=VALUE")
        require(matches_hint(optim[name], hint), wrong_type(f"optim.{name}", optim[name], hint))
    require(0 < optim.lr < math.inf, f"optim.lr={optim.lr}: must be more than 0, and finite")
    if isinstance(optim.schedule, str):
        choose("optim.schedule", optim.schedule, SCHEDULES)
    require(0 <= optim.warmup_fraction < 1, f"optim.warmup_fraction={optim.warmup_fraction}: must be in [0, 1)")
    norm, decay = optim.clip_norm, optim.weight_decay
    require(norm is None or norm > 0, f"optim.clip_norm={norm}: must be more than 0, or null")
    require(decay >= 0, f"optim.weight_decay={decay}: must be 0 or more")
    for part, lr in optim.lr_by_part.items():
        require(
            lr is None or (matches_hint(lr, float) and lr > 0),
            f"optim.lr_by_part.{part}={lr}: must be a number more than 0, or null",
        )
        require(
            lr is None or part in trainable,
            f"optim.lr_by_part names {part!r}, which does not train: stage.trainable={list(trainable)}",
        )


def check_counts(cfg: DictConfig) -> None:
    """Refuse counts and widths of our own classes that are no positive whole numbers; their names tell which they are.

    Raises:
        ConfigError: Naming the key and the value found.
    """
    groups = ("model", "data", "evaluation", "decoding", "logger", "callbacks")
    for key, value in _leaves(OmegaConf.to_container(cfg), groups):
        if _is_count(key) and value is not None and not str(value).startswith("${"):
            require(matches_hint(value, int) and value > 0, f"{key}={value}: must be a whole number, more than 0")


def _leaves(node: object, names: Sequence[str], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values below these keys, but for the arguments of a user's own classes, whose names are theirs."""
    if isinstance(node, dict) and not str(node.get("_target_", ALLOWED_TARGETS[0])).startswith(ALLOWED_TARGETS):
        return
    if isinstance(node, dict):
        for name, value in node.items():
            if prefix or name in names:
                yield from _leaves(value, names, f"{prefix}.{name}".lstrip("."))
    else:
        yield prefix, node


def _is_count(key: str) -> bool:
    """Return whether a key's name says that it holds a count or a width."""
    name = key.rpartition(".")[2]
    if key.startswith("decoding."):
        return name in ("num_beams", "max_new_tokens")
    if name == "num_workers":  # none are a number of them too
        return False
    return name.startswith("num_") or name.endswith(("_dim", "batch_size", "_per_record", "_steps"))
