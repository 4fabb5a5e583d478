"""A composed configuration as plain objects: below them nothing knows Hydra or OmegaConf."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from visllama.config.schema import EvaluateConfig, EvaluationSettings, PrepareConfig, RunConfig, TrainConfig
from visllama.config.selection import SELECTING, is_selecting


def plain(cfg: DictConfig) -> Any:
    """Return a verb's configuration as an object of its class in `schema.py`, with every reference resolved."""
    if OmegaConf.get_type(cfg) is PrepareConfig:
        return _plain_prepare(cfg)
    config = OmegaConf.to_object(cfg)
    if isinstance(config, TrainConfig) and config.judge:
        config.judged_on = _judged_on(cfg)
    return config


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a configuration's keys and values, without what is no key."""
    values = asdict(config)
    for field in fields(config):
        if field.metadata.get("omegaconf_ignore"):
            del values[field.name]
    return values


def to_yaml(config: RunConfig) -> str:
    """Return a configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def judging(cfg: DictConfig) -> EvaluateConfig:
    """Return what a run's configuration says of judging, as `evaluate` would be given it."""
    names = ("plugins", "paths", "evaluation", "decoding", "trainer")
    return EvaluateConfig(name=cfg.name, seed=cfg.seed, **{name: OmegaConf.to_object(cfg[name]) for name in names})


def evaluations(config: TrainConfig | EvaluateConfig) -> dict[str, dict]:
    """Return the evaluations of a verb as plain dictionaries."""
    return {name: asdict(evaluation) for name, evaluation in config.evaluation.items()}


def _plain_prepare(cfg: DictConfig) -> PrepareConfig:
    values = OmegaConf.to_container(cfg, resolve=True)
    common = {field.name: values.pop(field.name) for field in fields(PrepareConfig) if field.name in values}
    return PrepareConfig(**common, keys=values)


def _judged_on(cfg: DictConfig) -> dict[str, dict]:
    """Return the evaluations of a run; those of rivals in a sweep are on validation, under names that say so.

    The split is changed before references are resolved: the place of an evaluation's data may name it.
    """
    chosen = cfg.copy()
    suffix = ""
    if is_selecting():
        suffix = f"_{SELECTING}"
        for evaluation in chosen.evaluation.values():
            evaluation.split = SELECTING
    resolved: dict[str, EvaluationSettings] = OmegaConf.to_object(chosen.evaluation)
    return {f"{name}{suffix}": asdict(evaluation) for name, evaluation in resolved.items()}
