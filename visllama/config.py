"""The configuration: where it lies, its root schema, what may be instantiated, and what contradicts itself."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import get_class, instantiate
from omegaconf import MISSING, DictConfig, OmegaConf

ALLOWED_TARGETS = (
    "visllama.",
    "torch.optim.",
    "lightning.pytorch.callbacks.",
    "lightning.pytorch.loggers.",
    "lightning.pytorch.strategies.",
    "lightning.pytorch.profilers.",
)
TRAINABLE_PARTS = ("connector", "markers", "language_model", "vision_encoder", "adapter")


class ConfigError(ValueError):
    """What the user asked for cannot be done; the message names the key, what was found, and what to do."""


def conf_dir() -> Path:
    """Give the folder of YAML files: `visllama/conf` in a wheel, `conf/` beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


# ---------------------------------------------------------------------------------------------------- root schema


@dataclass
class StageSchema:
    """What a stage is: values only."""

    trainable: list[str] = MISSING
    global_batch_size: int = MISSING
    epochs: float = MISSING
    max_text_tokens: int = MISSING
    prompt: str = MISSING


@dataclass
class RunSchema:
    """What every verb has."""

    name: str = MISSING
    seed: int = 1
    paths: dict[str, str] = field(default_factory=dict)


@dataclass
class TrainSchema(RunSchema):
    micro_batch_size: int = MISSING
    judge: bool = True
    model: dict[str, Any] = MISSING
    data: dict[str, Any] = MISSING
    evaluation: dict[str, Any] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)
    stage: StageSchema = field(default_factory=StageSchema)
    optim: dict[str, Any] = MISSING
    trainer: dict[str, Any] = MISSING
    logger: dict[str, Any] = MISSING


@dataclass
class EvaluateSchema(RunSchema):
    weights: str | None = None
    predictions: str | None = None
    references: str | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = MISSING


@dataclass
class PrepareSchema(RunSchema):
    source: str = "scenes"
    out: str | None = None
    threads: int = 1
    prepare: dict[str, Any] = MISSING


def register() -> None:
    """Make schemas and resolvers known to Hydra; calling it again changes nothing."""
    store = ConfigStore.instance()
    for name, schema in (
        ("train_schema", TrainSchema),
        ("evaluate_schema", EvaluateSchema),
        ("prepare_schema", PrepareSchema),
    ):
        store.store(name=name, node=schema)
    OmegaConf.register_new_resolver("run_id", _run_id, replace=True, use_cache=True)


def _run_id() -> str:
    """Name a run's folder: the launcher's own id where there is one, so that all ranks agree, else date and time."""
    for variable in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        if os.environ.get(variable, "none") != "none":
            return os.environ[variable]
    return time.strftime("%Y-%m-%d_%H-%M-%S")


# --------------------------------------------------------------------------------------------------- instantiation


def check_target(target: object) -> str:
    """Refuse a `_target_` outside the packages that a config may name: it is code that would run.

    Raises:
        ConfigError: If the path does not start with one of `ALLOWED_TARGETS`.
    """
    if not isinstance(target, str) or not target.startswith(ALLOWED_TARGETS):
        raise ConfigError(f"_target_={target!r} is not allowed: a config may name {', '.join(ALLOWED_TARGETS)}*")
    return target


def build(node: Mapping, **arguments: Any) -> Any:
    """Instantiate a config node (as a plain call of its `_target_`), after checking every `_target_` inside it."""
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
    _check_targets(plain)
    return instantiate(plain, _convert_="all", **arguments)


def _check_targets(node: object) -> None:
    if isinstance(node, dict):
        if "_target_" in node:
            check_target(node["_target_"])
        for value in node.values():
            _check_targets(value)
    elif isinstance(node, list):
        for value in node:
            _check_targets(value)


def target_of_kind(part: str, kind: str) -> type:
    """Find the class behind a part's kind, the name of its YAML, e.g. ("connector", "mlp").

    Raises:
        ConfigError: If there is no such YAML.
    """
    folder = conf_dir() / "model" / part
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if kind not in known:
        raise ConfigError(f"unknown {part} {kind!r}: there are {', '.join(known)}")
    return get_class(check_target(OmegaConf.load(folder / f"{kind}.yaml")["_target_"]))


def override(key: str, value: object) -> str:
    """Write `key=value` so that Hydra reads the value back, quoted where it holds more than plain path characters."""
    text = str(value)
    if re.fullmatch(r"[\w./:+-]+", text, re.ASCII):
        return f"{key}={text}"
    # Hydra's grammar: a backslash escapes only before a quote (also the closing one).
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + m[2].replace("'", "\\'"), text)
    return f"{key}='{escaped}'"


# ---------------------------------------------------------------------------------------------------------- checks


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def check_train(cfg: DictConfig) -> None:
    """Refuse contradictions before any weight is loaded.

    Raises:
        ConfigError: Naming the key, the value found, and what to do.
    """
    stage, optim = cfg.stage, cfg.optim
    missing = sorted(OmegaConf.missing_keys(cfg))
    _require(not missing, f"no value for {', '.join(missing)}: give it as {missing[0] if missing else ''}=VALUE")
    for name in stage.trainable:
        _require(name in TRAINABLE_PARTS, f"stage.trainable names {name!r}: choose from {', '.join(TRAINABLE_PARTS)}")
        _require(name != "adapter", "stage.trainable names 'adapter', but the model has no LoRA: this version trains "
                 "stage=pretrain only")  # fmt: skip
    _require(len(stage.trainable) > 0, "stage.trainable=[] trains nothing: name at least the connector")
    for key, value in (("stage.global_batch_size", stage.global_batch_size), ("micro_batch_size", cfg.micro_batch_size),
                       ("stage.epochs", stage.epochs), ("stage.max_text_tokens", stage.max_text_tokens)):  # fmt: skip
        _require(value > 0, f"{key}={value}: must be more than 0")
    _require(optim.lr > 0, f"optim.lr={optim.lr}: must be more than 0")
    _require(
        optim.schedule in ("cosine", "linear", "constant"),
        f"optim.schedule={optim.schedule}: choose cosine, linear or constant",
    )
    _require(0 <= optim.warmup_fraction < 1, f"optim.warmup_fraction={optim.warmup_fraction}: must be in [0, 1)")
    for part in [name for name, lr in optim.lr_by_part.items() if lr is not None]:
        _require(
            part in stage.trainable,
            f"optim.lr_by_part names {part!r}, which does not train: stage.trainable={list(stage.trainable)}",
        )
    _require(
        cfg.trainer.max_steps is None or cfg.trainer.max_steps > 0,
        f"trainer.max_steps={cfg.trainer.max_steps}: must be more than 0, or null",
    )


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


def evaluations(cfg: DictConfig, split: str | None = None) -> dict[str, dict]:
    """Give the evaluations resolved; with `split`, on that one instead, under a name that says so.

    In a sweep the jobs are compared on `val`: test is for the chosen one alone.
    """
    resolved = cfg.copy()
    for evaluation in resolved.evaluation.values():
        evaluation.split = split or evaluation.split
    plain = OmegaConf.to_container(resolved.evaluation, resolve=True)
    return plain if split is None else {f"{name}_{split}": evaluation for name, evaluation in plain.items()}
