"""Read the model of `init_from=RUN/weights`, for a stage that goes on from weights which another stage has trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from visllama.config.invocation import invocation
from visllama.config.overrides import key_of
from visllama.errors import ConfigError
from visllama.model.weights import BASE_PARTS, read_description
from visllama.plugins import ROLES, part_class


def inherit_model(cfg: DictConfig) -> None:
    """Replace each part of `cfg.model` by that part of the model which the folder `init_from` describes.

    Only the file `visllama.json` is read; no weight is loaded. A part that the folder does not describe (LoRA, for
    example) stays as it is configured. A Hydra job has to be running, since the typed overrides are looked at.

    Args:
        cfg: The configuration of a run of `train` with `init_from`; its node `model` is changed in place.

    Raises:
        ConfigError: If the folder holds no description of weights; if the command line asks for another model (the
            message shows the differences); or if the folder holds a trained vision encoder or language model that
            `stage.trainable` does not name, since its trained weights are in no other folder.
    """
    folder = Path(cfg.init_from)
    description = read_description(folder)
    configured = cast("dict[str, Any]", OmegaConf.to_container(cfg.model, resolve=True))

    differences = []
    for role in (*ROLES, "lora"):
        part = description["parts"].get(role)
        if part is None:
            continue

        # LoRA is described by its arguments alone: it has no class to choose.
        described = dict(part) if role == "lora" else _node(role, part, cfg)
        differences += _differences(role, configured.get(role) or {}, described)
        with open_dict(cfg):
            cfg.model[role] = described

    if differences:
        raise ConfigError(
            f"init_from={folder}: its model is another one ({'; '.join(differences)}): leave these out to go on with it"
        )
    for part in BASE_PARTS:
        if part in description["trained"] and part not in cfg.stage.trainable:
            raise ConfigError(
                f"init_from={folder}: holds a trained {part}, which stage.trainable={list(cfg.stage.trainable)} would "
                f"freeze: name it there"
            )


def _differences(role: str, configured: Mapping[str, Any], described: Mapping[str, Any]) -> list[str]:
    """Return each argument of a part that the command line sets otherwise than the weights have it, for the message.

    Args:
        role: The part, as "connector" or "lora".
        configured: The part's arguments in the config; empty where it has none.
        described: The part's arguments in the description of the weights.
    """
    differences = []
    for key in {**configured, **described}:
        here = configured.get(key)
        there = described.get(key)
        # Defaults of the config that nobody typed give way to the weights.
        if here != there and _is_asked_for(role, key):
            differences.append(f"model.{role}.{key}={here} here, {there} there")
    return differences


def _node(role: str, part: Mapping[str, Any], cfg: DictConfig) -> dict[str, Any]:
    """Return the config node, with its `_target_` and arguments, of a part that the weights describe."""
    cls = part_class(role, part["kind"], cfg.plugins)
    return {"_target_": f"{cls.__module__}.{cls.__qualname__}", **part["arguments"]}


def _is_asked_for(role: str, key: str) -> bool:
    """Return whether the command line sets an argument of a part: by its own key, by an option, or by an experiment."""
    choosing_keys = (
        "model",
        f"model/{role}",
        f"model.{role}",
        f"model.{role}.{key}",
    )
    experiment = HydraConfig.get().runtime.choices.get("experiment")

    for word in invocation().overrides:
        typed_key = key_of(word)
        if typed_key in choosing_keys or typed_key.startswith(f"model.{role}.{key}."):
            return True
        if typed_key == "experiment" and _chooses_part(role, experiment):
            return True
    return False


def _chooses_part(role: str, experiment: str | None) -> bool:
    """Return whether an experiment's YAML sets or chooses a part of the model; True where the YAML is not found."""
    for source in HydraConfig.get().runtime.config_sources:
        path = Path(source.path) / "experiment" / f"{experiment}.yaml"
        if not path.is_file():
            continue

        content = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(path)))
        groups = set()
        for entry in content.get("defaults", []):
            # Entries that are no mapping are names of configs, as `_self_`.
            if isinstance(entry, dict):
                groups |= {str(key).removeprefix("override ") for key in entry}

        has_values = role in (content.get("model") or {})
        has_choice = not groups.isdisjoint({"/model", f"/model/{role}"})
        return has_values or has_choice

    # The file was not found: it may choose anything.
    return True
