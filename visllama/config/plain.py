"""A composed configuration as plain objects: whoever reads them needs neither Hydra nor OmegaConf."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from visllama.config.schema import EvaluateConfig, PrepareConfig, RunConfig, TrainConfig, key_names
from visllama.config.selection import SELECTING, is_selecting
from visllama.errors import require


def plain(cfg: DictConfig) -> RunConfig:
    """Return a verb's configuration as an object of its class in `schema.py`, with every reference resolved."""
    if OmegaConf.get_type(cfg) is PrepareConfig:
        return _plain_prepare(cfg)
    config = OmegaConf.to_object(cfg)
    if isinstance(config, TrainConfig):
        config.judged_on = _on_validation(cfg) if is_selecting() else evaluations(config)
    return config


def without_hydra(config: DictConfig) -> DictConfig:
    """Return a copy of a whole configuration as the verb is given it, without the node `hydra`."""
    cfg = config.copy()
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a configuration's keys and values, without what is no key."""
    values = asdict(config)
    return {key: values[key] for key in key_names(type(config))}


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
    """Return the configuration of `prepare`, with the keys that its source's YAML brings set apart."""
    values = OmegaConf.to_container(cfg, resolve=True)
    common = {key: values.pop(key) for key in key_names(PrepareConfig) if key in values}
    return PrepareConfig(**common, keys=values)


def _on_validation(cfg: DictConfig) -> dict[str, dict]:
    """Return the evaluations of a run on validation instead, under names that say so.

    The split is changed before references are resolved: the place of an evaluation's data may name it.
    """
    cfg = cfg.copy()
    for name, evaluation in cfg.evaluation.items():
        require(
            evaluation.references is None or evaluation.split == SELECTING,
            f"evaluation.{name}.split={evaluation.split}: the jobs of a sweep are selected by {SELECTING}, and these "
            f"files hold another split: give those of validation, with evaluation.{name}.split={SELECTING}",
        )
        evaluation.split = SELECTING
    resolved = OmegaConf.to_container(cfg.evaluation, resolve=True)
    return {f"{name}_{SELECTING}": evaluation for name, evaluation in resolved.items()}
