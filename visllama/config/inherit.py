"""`init_from=RUN/weights`: a stage that goes on from what another has trained, with the same model."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from visllama.config.invocation import invocation
from visllama.config.overrides import key_of
from visllama.errors import ConfigError
from visllama.model.weights import BASE_PARTS, read_description
from visllama.plugins import ROLES, part_class


def inherit_model(cfg: DictConfig) -> None:
    """Put the model that `init_from` describes into the config.

    What the weights do not hold, as an adapter, stays as it is configured.

    Raises:
        ConfigError: If the command line asks for another model, showing both; or if the stage would freeze a base model
            that was trained, whose weights nobody else has.
    """
    folder = Path(cfg.init_from)
    description = read_description(folder)
    differing, configured = [], OmegaConf.to_container(cfg.model, resolve=True)
    for role in (*ROLES, "lora"):
        part = description["parts"].get(role)
        if part is None:
            continue
        theirs = dict(part) if role == "lora" else _node(role, part, cfg)
        ours = configured.get(role) or {}
        keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key) and _is_asked_for(role, key)]
        differing += [f"model.{role}.{key}={ours.get(key)} here, {theirs.get(key)} there" for key in keys]
        with open_dict(cfg):
            cfg.model[role] = theirs
    if differing:
        raise ConfigError(
            f"init_from={folder}: its model is another one ({'; '.join(differing)}): leave these out to go on with it"
        )
    for part in BASE_PARTS:
        if part in description["trained"] and part not in cfg.stage.trainable:
            raise ConfigError(
                f"init_from={folder}: holds a trained {part}, which stage.trainable={list(cfg.stage.trainable)} would "
                f"freeze: name it there"
            )


def _node(role: str, part: dict, cfg: DictConfig) -> dict:
    found = part_class(role, part["kind"], cfg.plugins)
    return {"_target_": f"{found.__module__}.{found.__qualname__}", **part["arguments"]}


def _is_asked_for(role: str, key: str) -> bool:
    """Return whether the command line speaks of an argument of a part: by itself, or by a choice that holds it."""
    holding = ("model", f"model/{role}", f"model.{role}", f"model.{role}.{key}")
    experiment = HydraConfig.get().runtime.choices.get("experiment")
    return any(
        word in holding or word.startswith(f"model.{role}.{key}.") or (word == "experiment" and _has(role, experiment))
        for word in map(key_of, invocation().overrides)
    )


def _has(role: str, experiment: str) -> bool:
    """Return whether an experiment chooses a part of the model, and not the data or a rate alone."""
    for source in HydraConfig.get().runtime.config_sources:
        path = Path(source.path) / "experiment" / f"{experiment}.yaml"
        if path.is_file():
            content = OmegaConf.to_container(OmegaConf.load(path))
            entries = [entry for entry in content.get("defaults", []) if isinstance(entry, dict)]
            chosen = {str(key).removeprefix("override ") for entry in entries for key in entry}
            return role in (content.get("model") or {}) or bool(chosen & {"/model", f"/model/{role}"})
    return True
