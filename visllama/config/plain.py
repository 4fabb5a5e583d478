"""Turn a composed configuration into plain objects, so that whoever reads them needs neither Hydra nor OmegaConf."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from visllama.config.schema import EvaluateConfig, PrepareConfig, RunConfig, TrainConfig, key_names
from visllama.config.selection import SELECTING, is_selecting
from visllama.errors import require


def plain(cfg: DictConfig) -> RunConfig:
    """Return a verb's configuration as an object of its class in `schema.py`, with every reference (`${...}`) resolved.

    For `train`, `judged_on` is filled in, which needs a running Hydra job; for `prepare`, the source's own keys are in
    `keys`.

    Args:
        cfg: The configuration that Hydra has composed, without the node `hydra`; it is not changed.

    Raises:
        ConfigError: If the running job belongs to a sweep whose best job is chosen on the split "val", and an
            evaluation has `references` of another split.
    """
    if OmegaConf.get_type(cfg) is PrepareConfig:
        return _plain_prepare(cfg)

    # OmegaConf makes the class that the verb's schema was registered with.
    config = cast("RunConfig", OmegaConf.to_object(cfg))
    if isinstance(config, TrainConfig):
        config.judged_on = _on_validation(cfg) if is_selecting() else evaluations(config)
    return config


def without_hydra(config: DictConfig) -> DictConfig:
    """Return a copy of a whole configuration without its node `hydra`; the original is not changed."""
    cfg = config.copy()
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a configuration as nested dictionaries, with the verb's keys alone.

    Fields that are no keys of the configuration (`judged_on`, and the `keys` of `prepare`) are left out.
    """
    values = asdict(config)
    return {key: values[key] for key in key_names(type(config))}


def to_yaml(config: RunConfig) -> str:
    """Return a configuration as the text of a YAML file, with the same keys as `to_dict`."""
    values = OmegaConf.create(to_dict(config))
    return OmegaConf.to_yaml(values)


def judging(cfg: DictConfig) -> EvaluateConfig:
    """Return the configuration with which `evaluate` would judge a run: the run's evaluations, decoding and machine.

    What to judge (`weights`) and the keys for predictions are left at their defaults.

    Args:
        cfg: The composed configuration of a run of `train`; it is not changed.
    """
    names = ("plugins", "paths", "evaluation", "decoding", "trainer")
    values: dict[str, Any] = {}
    for name in names:
        values[name] = OmegaConf.to_object(cfg[name])
    return EvaluateConfig(name=cfg.name, seed=cfg.seed, **values)


def evaluations(config: TrainConfig | EvaluateConfig) -> dict[str, dict]:
    """Return each evaluation's settings as a new dictionary, by the evaluation's name, in the order of the config."""
    return {name: asdict(evaluation) for name, evaluation in config.evaluation.items()}


def _plain_prepare(cfg: DictConfig) -> PrepareConfig:
    """Return the configuration of `prepare`, with the keys that only the chosen source has in the field `keys`."""
    values = cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True))
    common = {}
    for key in key_names(PrepareConfig):
        if key in values:
            common[key] = values.pop(key)

    # What is left is the source's own.
    return PrepareConfig(**common, keys=values)


def _on_validation(cfg: DictConfig) -> dict[str, dict]:
    """Return a run's evaluations as dictionaries, with `split` set to "val", each under its name with `_val` behind it.

    Raises:
        ConfigError: If an evaluation has its own files (`references`), which hold another split.
    """
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
