"""A composed configuration as plain objects: whoever reads them needs neither Hydra nor OmegaConf."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from visllama.config.schema import EvaluateConfig, PrepareConfig, RunConfig, TrainConfig, key_names
from visllama.config.selection import SELECTING, is_selecting
from visllama.errors import require


def plain(cfg: DictConfig) -> RunConfig:
    """Return a verb's configuration as an object of its class in `schema.py`, with every reference resolved.

    Args:
        cfg: What Hydra composed, without the node `hydra`.

    Raises:
        ConfigError: If jobs of a sweep would be selected on files that do not hold the validation split.
    """
    if OmegaConf.get_type(cfg) is PrepareConfig:
        return _plain_prepare(cfg)

    # OmegaConf makes the class that the verb's schema was registered with.
    config = cast("RunConfig", OmegaConf.to_object(cfg))
    if isinstance(config, TrainConfig):
        config.judged_on = _on_validation(cfg) if is_selecting() else evaluations(config)
    return config


def without_hydra(config: DictConfig) -> DictConfig:
    """Return a copy of a whole configuration without the node `hydra`, as a verb reads it."""
    cfg = config.copy()
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a configuration's keys and values, without the fields that are no keys."""
    values = asdict(config)
    return {key: values[key] for key in key_names(type(config))}


def to_yaml(config: RunConfig) -> str:
    """Return a configuration as YAML."""
    values = OmegaConf.create(to_dict(config))
    return OmegaConf.to_yaml(values)


def judging(cfg: DictConfig) -> EvaluateConfig:
    """Return the configuration of the `evaluate` that judges a run, taken from the run's own.

    Args:
        cfg: The configuration of a run of `train`.
    """
    names = ("plugins", "paths", "evaluation", "decoding", "trainer")
    values: dict[str, Any] = {}
    for name in names:
        values[name] = OmegaConf.to_object(cfg[name])
    return EvaluateConfig(name=cfg.name, seed=cfg.seed, **values)


def evaluations(config: TrainConfig | EvaluateConfig) -> dict[str, dict]:
    """Return the evaluations of a verb as plain dictionaries."""
    return {name: asdict(evaluation) for name, evaluation in config.evaluation.items()}


def _plain_prepare(cfg: DictConfig) -> PrepareConfig:
    """Return the configuration of `prepare`, with the keys that its source's YAML brings in `keys`."""
    values = cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True))
    common = {}
    for key in key_names(PrepareConfig):
        if key in values:
            common[key] = values.pop(key)

    # What is left is the source's own.
    return PrepareConfig(**common, keys=values)


def _on_validation(cfg: DictConfig) -> dict[str, dict]:
    """Return the evaluations of a run with the validation split in place of theirs, under names that say so."""
    # The split is changed before references are resolved: the place of an evaluation's data may name it.
    cfg = cfg.copy()
    for name, evaluation in cfg.evaluation.items():
        require(
            evaluation.references is None or evaluation.split == SELECTING,
            f"evaluation.{name}.split={evaluation.split}: the jobs of a sweep are selected by {SELECTING}, and these "
            f"files hold another split: give those of validation, with evaluation.{name}.split={SELECTING}",
        )
        evaluation.split = SELECTING

    resolved = cast("dict[str, dict]", OmegaConf.to_container(cfg.evaluation, resolve=True))
    return {f"{name}_{SELECTING}": evaluation for name, evaluation in resolved.items()}
