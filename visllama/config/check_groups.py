"""Check the values of each group of keys (`stage`, `data`, `trainer`, `optim`, ...): ranges, names, and contradictions.

Each check takes a node that Hydra has composed, changes nothing in it, and raises a `ConfigError` at the first mistake.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

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
"""The keys of an evaluation that name what its source reads."""


def check_stage(stage: DictConfig) -> None:
    """Check the node `stage` (one phase of training): the model's parts to train, the chat template, and the numbers.

    `trainable` must name at least one part, and known parts only, each once. `global_batch_size`, `epochs` and
    `max_text_tokens` must be more than 0 and finite; `num_samples` must be more than 0 or null.

    Raises:
        ConfigError: At the first mistake; the message names the key, the value found, and what to give.
    """
    trainable = stage.trainable
    for name in trainable:
        require(
            name in TRAINABLE_PARTS,
            f"stage.trainable names {name!r}: choose from {', '.join(TRAINABLE_PARTS)}",
        )
    require(
        len(set(trainable)) == len(trainable),
        f"stage.trainable={trainable}: names a part twice: name each once",
    )
    require(
        len(trainable) > 0,
        "stage.trainable=[] trains nothing: name at least the connector",
    )

    check_template("stage.template", stage.template)

    for name in ("global_batch_size", "epochs", "max_text_tokens"):
        value = stage[name]
        require(
            0 < value < math.inf,
            f"stage.{name}={value}: must be more than 0, and finite",
        )
    num_samples = stage.num_samples
    require(
        num_samples is None or num_samples > 0,
        f"stage.num_samples={num_samples}: must be more than 0, or null for stage.epochs",
    )


def check_data(data: DictConfig) -> None:
    """Check the node `data`: that it has a source, each source's `weight` and `prompt`, and the numbers of the loader.

    Other arguments of a source are left to the source's own class. No file is read.

    Raises:
        ConfigError: At the first mistake; the message names the key, the value found, and what to give.
    """
    require(
        len(data.sources) > 0,
        "data.sources={} holds no data: choose one, as data=scenes",
    )
    for name, node in data.sources.items():
        _check_source(f"data.sources.{name}", node)

    # 0: records are loaded in the process that trains.
    num_workers = data.num_workers
    require(num_workers >= 0, f"data.num_workers={num_workers}: must be 0 or more")
    num_records = data.num_val_records
    require(
        num_records is None or num_records > 0,
        f"data.num_val_records={num_records}: must be more than 0, or null for all",
    )
    fraction = data.max_bad_fraction
    require(0 <= fraction <= 1, f"data.max_bad_fraction={fraction}: must be in [0, 1]")
    for name in ("max_consecutive_bad", "window_shards"):
        value = data[name]
        require(value > 0, f"data.{name}={value}: must be more than 0")


def _check_source(key: str, node: DictConfig) -> None:
    """Check the arguments of a data source that visllama itself reads, `weight` and `prompt`; both may be missing."""
    weight = node.get("weight", 1.0)
    is_weight = matches_hint(weight, float) and 0 < weight < math.inf
    require(
        is_weight,
        f"{key}.weight={weight}: must be a number more than 0: the share of the samples beside other sources",
    )
    prompt = node.get("prompt")
    require(
        prompt is None or isinstance(prompt, str),
        wrong_type(f"{key}.prompt", prompt, str | None),
    )


def check_adapter(cfg: DictConfig) -> None:
    """Check that `model.lora` and `stage.trainable` fit together.

    With LoRA, `adapter` has to train and `language_model` must not; without LoRA, `adapter` must not be named.

    Args:
        cfg: The configuration of a run of `train`, of which `model` and `stage` are read.

    Raises:
        ConfigError: If they do not fit; the message names both keys and what to do.
    """
    trainable = list(cfg.stage.trainable)
    if cfg.model.get("lora") is None:
        require(
            "adapter" not in trainable,
            "stage.trainable names 'adapter', but the model has none: choose one, as model/lora=qv",
        )
        return

    # An adapter starts as the identity: one that does not train would cost memory and change nothing.
    require(
        "adapter" in trainable,
        f"model.lora adds an adapter, which stage.trainable={trainable} does not train: name adapter there, or choose "
        f"model/lora=none",
    )
    require(
        "language_model" not in trainable,
        "stage.trainable names language_model beside model.lora: train it whole (model/lora=none), or by its adapter",
    )


def check_template(key: str, template: object) -> None:
    """Check that a chat template is a known name, or a mapping that holds the strings of a template.

    The name "tokenizer" is always accepted: that template is read only when the language model is loaded.

    Args:
        key: The dotted key that the template was given to, for the message, for example "stage.template".
        template: The value at that key, of any type.

    Raises:
        ConfigError: If the value is of another type, an unknown name, or a wrong mapping; the message begins with the
            key.
    """
    if isinstance(template, DictConfig):
        template = OmegaConf.to_container(template, resolve=True)
    if not isinstance(template, (str, dict)):
        raise ConfigError(f"{key}={template}: give a template's name, or its strings")

    # The tokenizer's own template is checked when the tokenizer is loaded.
    if template == OF_TOKENIZER:
        return

    try:
        find_template(cast("str | Mapping[str, str]", template))
    except ConfigError as error:
        # The message begins with the last name of the key.
        parent = key.rpartition(".")[0]
        raise ConfigError(f"{parent}.{error}") from error


def check_trainer(trainer: DictConfig) -> None:
    """Check the node `trainer`: that `accelerator` and `precision` are known names, and the ranges of all numbers.

    Whether this machine has the devices is checked by `check_machine` in `dry_run.py`, which needs torch.

    Raises:
        ConfigError: At the first mistake; the message names the key, the value found, and what to give.
    """
    choose("trainer.accelerator", trainer.accelerator, ACCELERATORS)
    choose("trainer.precision", trainer.precision, PRECISIONS)
    _check_devices(trainer)

    for name in ("log_every_steps", "keep_checkpoints", "max_skipped_steps", "timeout_s", "threads"):
        value = trainer[name]
        require(
            0 < value < math.inf,
            f"trainer.{name}={value}: must be more than 0, and finite",
        )
    threads = trainer.threads
    require(
        threads <= MOST_THREADS,
        f"trainer.threads={threads}: must be at most {MOST_THREADS}",
    )
    # An exit code has eight bits, and 0 would tell the scheduler that the run is finished.
    exit_code = trainer.preempted_exit_code
    require(
        0 < exit_code < 256,
        f"trainer.preempted_exit_code={exit_code}: must be in [1, 255]",
    )

    # null: a checkpoint at each validation alone, and as many steps as the stage has.
    for name in ("checkpoint_every_steps", "max_steps"):
        steps = trainer[name]
        require(
            steps is None or steps > 0,
            f"trainer.{name}={steps}: must be more than 0, or null",
        )

    interval = trainer.val_check_interval
    if interval is not None:
        # The schema makes a float of the value, also of a number of steps.
        is_part_of_run = 0 < interval <= 1
        is_whole_steps = 1 < interval < math.inf and interval == int(interval)
        require(
            is_part_of_run or is_whole_steps,
            f"trainer.val_check_interval={interval}: must be a part of the run in (0, 1], a whole number of steps, or "
            f"null",
        )


def _check_devices(trainer: DictConfig) -> None:
    """Check the form of `trainer.devices` and `trainer.num_nodes`.

    Devices are a number of 1 or more, -1, a list of indices, or "auto"; nodes are a number of 1 or more, or "auto".
    """
    devices = trainer.devices
    # -1 means all devices of the machine.
    is_count = matches_hint(devices, int) and (devices > 0 or devices == -1)
    is_list = isinstance(devices, ListConfig) and len(devices) > 0
    are_indices = is_list and all(matches_hint(index, int) for index in devices)
    require(
        is_count or are_indices or devices == "auto",
        f"trainer.devices={devices}: give a number of devices, a list of their indices, or auto",
    )

    nodes = trainer.num_nodes
    is_count = matches_hint(nodes, int) and nodes > 0
    require(
        is_count or nodes == "auto",
        f"trainer.num_nodes={nodes}: give a number, or auto",
    )


def check_evaluations(evaluations: Mapping[str, DictConfig]) -> None:
    """Check each evaluation: its task, split, metrics, controls, template, tokenizer and `num_images`, and its files.

    Controls are scores to compare with, for example those of texts that are written from shuffled images.

    Files are looked for on the disk (`document_frequencies`, `instances`, `object_names`) or compared with the
    arguments of the source (`images`, `references`, `questions`); none is read.

    Args:
        evaluations: The nodes below `evaluation`, by their names. Without any, nothing is checked.

    Raises:
        ConfigError: At the first mistake; the message names the key, the value found, and what may be given.
    """
    for name, evaluation in evaluations.items():
        key = f"evaluation.{name}"
        _check_files(key, evaluation)
        choose(f"{key}.task", evaluation.task, tuple(TASKS))
        choose(f"{key}.split", evaluation.split, SPLITS)
        _check_metrics(key, evaluation)

        if evaluation.template is not None:
            check_template(f"{key}.template", evaluation.template)
        choose(f"{key}.tokenizer", evaluation.tokenizer, TOKENIZERS)
        frequencies = evaluation.document_frequencies
        require(
            frequencies is None or Path(frequencies).is_file(),
            f"{key}.document_frequencies={frequencies}: no such file: give references, as COCO's annotations",
        )

        _check_picture_metrics(key, evaluation)
        num_images = evaluation.num_images
        require(
            num_images is None or num_images > 1,
            f"{key}.num_images={num_images}: must be more than 1, or null for all",
        )


def _check_metrics(key: str, evaluation: DictConfig) -> None:
    """Check that an evaluation's metrics and controls are those of its task."""
    task = evaluation.task
    metrics, controls = TASKS[task]
    for metric in evaluation.metrics:
        # A metric of another task is no misspelling: the task itself may be the mistake.
        for other_task, (other_metrics, _) in TASKS.items():
            require(
                other_task == task or metric not in other_metrics,
                f"{key}.task={task}: {key}.metrics names {metric}, which is a metric of the task {other_task}: the "
                f"task {task} has {', '.join(metrics)}",
            )
        choose(f"{key}.metrics", metric, metrics)

    for control in evaluation.controls:
        choose(f"{key}.controls", control, controls)


def _check_picture_metrics(key: str, evaluation: DictConfig) -> None:
    """Check that CHAIR has its annotations, and that no key is set which only a metric reads that is not chosen."""
    has_chair = "CHAIR" in evaluation.metrics
    require(
        not has_chair or evaluation.instances is not None,
        f"{key}.metrics names CHAIR: give {key}.instances=FILE, COCO's instance annotations of the split",
    )

    for name in ("instances", "object_names"):
        value = evaluation[name]
        if value is None:
            continue
        require(
            has_chair,
            f"{key}.{name}={value}: only CHAIR reads it: name it in {key}.metrics",
        )
        require(Path(value).is_file(), f"{key}.{name}={value}: no such file")

    clip = evaluation.clip
    require(
        clip is None or "CLIPScore" in evaluation.metrics,
        f"{key}.clip={clip}: only CLIPScore reads it: name it in {key}.metrics",
    )


def _check_files(key: str, evaluation: DictConfig) -> None:
    """Check that an evaluation's source has the files that it needs, and that each file which is set is read by it."""
    source = {} if OmegaConf.is_missing(evaluation, "source") else evaluation.source

    # A source of the user's own may do without a file that it has an argument for.
    is_ours = str(source.get("_target_")).startswith("visllama.")
    missing = []
    for name in _FILES:
        if is_ours and name in source and source[name] is None:
            missing.append(f"{key}.{name}")
    if missing:
        advice = " ".join(f"{name}=PATH" for name in missing)
        raise ConfigError(f"no value for {', '.join(missing)}: give {advice}")

    for name in _FILES:
        value = evaluation[name]
        require(
            value is None or source.get(name) == value,
            f"{key}.{name}={value}: its source reads no such file: evaluation=[files] captions a folder of pictures "
            f"with images and references, evaluation=[files_vqa] asks questions about it",
        )


def check_optim(optim: DictConfig, trainable: Sequence[str]) -> None:
    """Check the node `optim`: the types and ranges of the keys that visllama reads.

    A part of the model that has a learning rate of its own in `lr_by_part` must be one of the parts that train.

    Args:
        optim: The node `optim`. Arguments of the optimizer's own class are not checked here.
        trainable: The names of the parts that train, which is the value of `stage.trainable`.

    Raises:
        ConfigError: At the first mistake; the message names the key, the value found, and what to give.
    """
    # The node is an optimizer's, whose arguments no schema knows: the types are checked here.
    for name, hint in OPTIM_TYPES.items():
        require(name in optim, f"no value for optim.{name}: give it as optim.{name}=VALUE")
        value = optim[name]
        require(matches_hint(value, hint), wrong_type(f"optim.{name}", value, hint))

    require(
        0 < optim.lr < math.inf,
        f"optim.lr={optim.lr}: must be more than 0, and finite",
    )
    if isinstance(optim.schedule, str):
        choose("optim.schedule", optim.schedule, SCHEDULES)
    warmup = optim.warmup_fraction
    require(0 <= warmup < 1, f"optim.warmup_fraction={warmup}: must be in [0, 1)")
    clip_norm = optim.clip_norm
    require(
        clip_norm is None or clip_norm > 0,
        f"optim.clip_norm={clip_norm}: must be more than 0, or null",
    )
    weight_decay = optim.weight_decay
    require(weight_decay >= 0, f"optim.weight_decay={weight_decay}: must be 0 or more")

    for part, lr in optim.lr_by_part.items():
        # null stands for optim.lr, times the scale that the part has of its own.
        if lr is None:
            continue
        require(
            matches_hint(lr, float) and lr > 0,
            f"optim.lr_by_part.{part}={lr}: must be a number more than 0, or null",
        )
        require(
            part in trainable,
            f"optim.lr_by_part names {part!r}, which does not train: stage.trainable={list(trainable)}",
        )


def check_counts(cfg: DictConfig) -> None:
    """Check that arguments whose names say so (`num_...`, `..._dim`, `..._batch_size`, ...) are positive whole numbers.

    The check covers all values below `model`, `data`, `evaluation`, `decoding`, `logger` and `callbacks`, except for
    null, references to other keys (`${...}`), `num_workers`, and the arguments of a user's own classes.

    Args:
        cfg: The whole configuration of a verb; groups that it does not have are passed over.

    Raises:
        ConfigError: At the first such value that is no positive whole number; the message names the key and the value.
    """
    groups = ("model", "data", "evaluation", "decoding", "logger", "callbacks")
    for key, value in _leaves(OmegaConf.to_container(cfg), groups):
        is_reference = str(value).startswith("${")
        if value is None or is_reference or not _names_count(key):
            continue
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        require(
            is_whole and value > 0,
            f"{key}={value}: must be a whole number, more than 0",
        )


def _leaves(node: object, names: Sequence[str], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the dotted key and the value of everything below the keys in `names`, except inside a user's own classes.

    Lists count as values. With an empty `names`, nothing is yielded.
    """
    if not isinstance(node, dict):
        yield prefix, node
        return

    # What `num_x` means in a user's class is the user's to say.
    target = str(node.get("_target_", ALLOWED_TARGETS[0]))
    if not target.startswith(ALLOWED_TARGETS):
        return
    for name, value in node.items():
        if prefix or name in names:
            key = f"{prefix}.{name}".lstrip(".")
            yield from _leaves(value, names, key)


def _names_count(key: str) -> bool:
    """Return whether a dotted key's last name says that the value is a count or a width."""
    name = key.rpartition(".")[2]
    if key.startswith("decoding."):
        return name in ("num_beams", "max_new_tokens")

    # 0 workers are a number of them too.
    if name == "num_workers":
        return False
    return name.startswith("num_") or name.endswith(("_dim", "batch_size", "_per_record", "_steps"))
