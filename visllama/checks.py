"""What is refused before any weight is loaded: contradictions, wrong types and ranges, files that are not there.

`check_train` needs nothing heavy and comes first; `check_parts` imports the classes that the config names.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from visllama.config import ConfigError
from visllama.plugins import check_targets, class_of_target

TRAINABLE_PARTS = ("connector", "markers", "language_model", "vision_encoder", "adapter")
METRICS = ("BLEU", "METEOR", "ROUGE-L", "CIDEr")
CONTROLS = ("shuffled_images", "blank_images")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("auto", "32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true")
SCHEDULES = ("cosine", "linear", "constant")
_OPTIM_TYPES = {
    "lr": float, "weight_decay": float, "schedule": str, "warmup_fraction": float, "clip_norm": float | None,
    "lr_by_part": Mapping,
}  # fmt: skip
_ADDED_BY_US = {"connector": {"vision_dim", "language_dim"}, "source": {"split"}}


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _choose(key: str, value: object, options: Sequence[str]) -> None:
    _require(value in options, f"{key}={value}: choose {', '.join(options[:-1])} or {options[-1]}")


def check_train(cfg: DictConfig) -> None:
    """Refuse contradictions before any weight is loaded.

    Raises:
        ConfigError: Naming the key, the value found, and what to do.
    """
    _check_nodes(cfg)
    missing = sorted(OmegaConf.missing_keys(cfg))
    _require(not missing, f"no value for {', '.join(missing)}: give it as {missing[0] if missing else ''}=VALUE")
    _check_run(cfg)
    stage = cfg.stage
    for name in stage.trainable:
        _require(name in TRAINABLE_PARTS, f"stage.trainable names {name!r}: choose from {', '.join(TRAINABLE_PARTS)}")
        _require(name != "adapter", "stage.trainable names 'adapter', but the model has no LoRA: this version trains "
                 "stage=pretrain only")  # fmt: skip
    _require(len(stage.trainable) > 0, "stage.trainable=[] trains nothing: name at least the connector")
    _require(len(cfg.data.sources) > 0, "data.sources={} holds no data: choose one, as data=scenes")
    for key, value in (("stage.global_batch_size", stage.global_batch_size), ("micro_batch_size", cfg.micro_batch_size),
                       ("stage.epochs", stage.epochs), ("stage.max_text_tokens", stage.max_text_tokens)):  # fmt: skip
        _require(value > 0, f"{key}={value}: must be more than 0")
    workers, val = cfg.data.num_workers, cfg.data.num_val_records
    _require(workers >= 0, f"data.num_workers={workers}: must be 0 or more")
    _require(val is None or val > 0, f"data.num_val_records={val}: must be more than 0, or null for all")
    _check_optim(cfg.optim, stage.trainable)


def check_caption(cfg: DictConfig) -> None:
    """Refuse what `caption` cannot do, before any weight is loaded.

    Raises:
        ConfigError: Naming the key and what to do.
    """
    for key in ("weights", "images"):
        _require(not OmegaConf.is_missing(cfg, key), f"no value for {key}: give weights=RUN/weights images=PATH")
    _require(Path(cfg.weights).exists(), f"weights={cfg.weights}: no such folder")
    _require(cfg.batch_size > 0, f"batch_size={cfg.batch_size}: must be more than 0")
    _check_run(cfg)


def check_evaluate(cfg: DictConfig) -> None:
    """Refuse a call that says neither, or both, of what to judge.

    Raises:
        ConfigError: Naming the key and what to do.
    """
    given = [key for key in ("weights", "predictions") if cfg[key]]
    _require(len(given) == 1, "give one of weights=RUN/weights and predictions=FILE (with references=FILE); "
             f"found {' and '.join(given) or 'neither'}")  # fmt: skip
    if cfg.predictions:
        _require(cfg.references is not None, "references=FILE is missing: captions are scored against references")
    for key in ("predictions", "references") if cfg.predictions else ("weights",):
        _require(Path(cfg[key]).exists(), f"{key}={cfg[key]}: no such file or folder")
    _check_run(cfg)


def _check_run(cfg: DictConfig) -> None:
    """Check what several verbs have: trainer, evaluations, decoding."""
    trainer = cfg.trainer
    _choose("trainer.accelerator", trainer.accelerator, ACCELERATORS)
    _choose("trainer.precision", trainer.precision, PRECISIONS)
    devices = trainer.devices
    counted = _fits(devices, int) and (devices > 0 or devices == -1)
    _require(
        counted or devices == "auto" or isinstance(devices, ListConfig),
        f"trainer.devices={devices}: give a number of devices, a list of their indices, or auto",
    )
    for name in ("num_nodes", "log_every_steps", "threads"):
        _require(trainer[name] > 0, f"trainer.{name}={trainer[name]}: must be more than 0")
    steps, fraction = trainer.max_steps, trainer.val_fraction
    _require(steps is None or steps > 0, f"trainer.max_steps={steps}: must be more than 0, or null")
    _require(fraction is None or 0 < fraction <= 1, f"trainer.val_fraction={fraction}: must be in (0, 1], or null")
    for name, evaluation in cfg.get("evaluation", {}).items():
        key = f"evaluation.{name}"
        _require(evaluation.task == "caption", f"{key}.task={evaluation.task}: this version judges task=caption")
        for metric in evaluation.metrics:
            _choose(f"{key}.metrics", metric, METRICS)
        for control in evaluation.controls:
            _choose(f"{key}.controls", control, CONTROLS)
    for key, value in _leaves(OmegaConf.to_container(cfg), ("model", "data", "evaluation", "decoding")):
        _check_count(key, value)


def _check_nodes(cfg: DictConfig) -> None:
    """Check that what an option of a group fills in is there, where a value was typed in its place."""
    nodes = [(f"model.{part}", cfg.model.get(part)) for part in ("vision_encoder", "connector", "language_model")]
    nodes += [(f"data.sources.{name}", node) for name, node in cfg.data.sources.items()]
    nodes += [(f"evaluation.{name}.source", evaluation.source) for name, evaluation in cfg.evaluation.items()]
    nodes += [("optim", cfg.optim), ("logger", cfg.logger)]
    if cfg.trainer.strategy != "auto":
        nodes.append(("trainer.strategy", cfg.trainer.strategy))
    for key, node in nodes:
        if not isinstance(node, DictConfig) or "_target_" not in node:
            group = key.replace(".", "/").replace("data/sources", "data/source")
            _require(False, f"{key}={node}: an option of a group is chosen with slashes: {group}=OPTION")
        check_targets(OmegaConf.to_container(node), cfg.plugins)


def _check_optim(optim: DictConfig, trainable: Sequence[str]) -> None:
    for name, hint in _OPTIM_TYPES.items():
        if name in optim:
            _require(_fits(optim[name], hint), _wrong_type(f"optim.{name}", optim[name], hint))
    _require(optim.lr > 0, f"optim.lr={optim.lr}: must be more than 0")
    _choose("optim.schedule", optim.schedule, SCHEDULES)
    _require(0 <= optim.warmup_fraction < 1, f"optim.warmup_fraction={optim.warmup_fraction}: must be in [0, 1)")
    norm, decay = optim.clip_norm, optim.get("weight_decay", 0)
    _require(norm is None or norm > 0, f"optim.clip_norm={norm}: must be more than 0, or null")
    _require(decay >= 0, f"optim.weight_decay={decay}: must be 0 or more")
    for part, lr in optim.lr_by_part.items():
        _require(
            lr is None or (_fits(lr, float) and lr > 0),
            f"optim.lr_by_part.{part}={lr}: must be a number more than 0, or null",
        )
        _require(
            lr is None or part in trainable,
            f"optim.lr_by_part names {part!r}, which does not train: stage.trainable={list(trainable)}",
        )


# ------------------------------------------------------------------------------------------------- classes and types


def check_parts(cfg: DictConfig) -> None:
    """Check the arguments of every class that the config names against its signature.

    Raises:
        ConfigError: Naming the key, the value found, and what is expected.
    """
    plain = OmegaConf.to_container(cfg, resolve=True)
    nodes = [(f"model.{role}", role, node) for role, node in plain["model"].items()]
    nodes += [(f"data.sources.{name}", "source", node) for name, node in plain["data"]["sources"].items()]
    nodes += [(f"evaluation.{name}.source", "source", e["source"]) for name, e in plain["evaluation"].items()]
    for key, role, node in nodes:
        try:
            found = class_of_target(role, node["_target_"], cfg.plugins)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from error
        _check_arguments(key, found, {k: v for k, v in node.items() if k != "_target_"}, _ADDED_BY_US.get(role, set()))


def _check_arguments(key: str, found: type, given: Mapping[str, Any], added: set[str]) -> None:
    signature = inspect.signature(found)
    try:
        signature.bind(**given, **dict.fromkeys(added))
    except TypeError as error:
        takes = ", ".join(name for name in signature.parameters if name not in added)
        raise ConfigError(f"{key}: {error}; {found.__name__} takes {takes}") from error
    try:
        hints = get_type_hints(found.__init__)
    except NameError:  # a class of somebody's own, with hints that do not resolve
        return
    for name, value in given.items():
        _require(_fits(value, hints.get(name, Any)), _wrong_type(f"{key}.{name}", value, hints.get(name, Any)))


def _wrong_type(key: str, value: object, hint: object) -> str:
    return f"{key}={value}: must be {getattr(hint, '__name__', None) or hint}, not {type(value).__name__}".replace(
        "NoneType", "null"
    )


def _fits(value: object, hint: Any) -> bool:
    """Tell whether a plain value out of YAML can stand for a parameter with this hint."""
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if hint in (None, type(None)):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        return isinstance(value, (list, tuple))
    hint = origin or hint
    return isinstance(value, hint) if isinstance(hint, type) else True


def _leaves(node: object, names: Sequence[str], prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(node, dict):
        for name, value in node.items():
            if prefix or name in names:
                yield from _leaves(value, names, f"{prefix}.{name}".lstrip("."))
    else:
        yield prefix, node


def _check_count(key: str, value: object) -> None:
    """Hold counts, widths and sizes, which names tell (`num_*`, `*_dim`, `*_size`, ...), to positive whole numbers."""
    name = key.rpartition(".")[2]
    is_count = name.startswith(("num_", "max_", "min_")) or name.endswith(("_dim", "_size", "_px", "_per_record"))
    if is_count and name != "num_workers" and value is not None and not str(value).startswith("${"):
        _require(_fits(value, int) and value > 0, f"{key}={value}: must be a whole number, more than 0")
