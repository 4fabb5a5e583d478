"""Whether the keys of a configuration are ones that something reads, and groups hold what an option fills in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from visllama.config.instantiate import targets
from visllama.config.overrides import key_of
from visllama.config.schema import key_names
from visllama.errors import ConfigError, require
from visllama.model.locate import locate
from visllama.plugins import ROLES, check_target


def check_typed(verb: str, read: Sequence[str]) -> None:
    """Refuse keys of `trainer` that were typed and that a verb does not read; groups and conf/local may hold them.

    Raises:
        ConfigError: Naming the key and those that are read.
    """
    for word in _typed():
        key = key_of(word)
        group, *names = re.split(r"[./]", key)
        if group == "trainer" and names and names[0] not in read:
            known = ", ".join(f"trainer.{name}" for name in read) or "none of trainer.*, since no model is loaded"
            raise ConfigError(f"{key}: {verb} does not read it: leave it out. It reads {known}")


def check_groups_typed(mode: str, read: Sequence[str], reason: str) -> None:
    """Refuse keys and groups that were typed and that one mode of a verb does not read.

    Args:
        mode: The words that choose the mode, for the message.
        read: The first names of the keys that it reads.
        reason: Why it does not read the others.

    Raises:
        ConfigError: Naming the key and those that are read.
    """
    for word in _typed():
        key = key_of(word)
        if re.split(r"[./@]", key)[0] not in read:
            known = ", ".join(name for name in read if name != "hydra")
            raise ConfigError(f"{key}: {mode} does not read it, {reason}: leave it out. It reads {known}")


def check_not_typed(key: str, reason: str) -> None:
    """Refuse a key that was typed where nothing reads it.

    Raises:
        ConfigError: Naming the key and the reason.
    """
    if key in map(key_of, _typed()):
        raise ConfigError(f"{key}: {reason}: leave it out")


def _typed() -> list[str]:
    """Return the overrides that were typed."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def check_known(node: DictConfig, prefix: str = "") -> None:
    """Refuse keys that `+` added where every key is known: nothing would read them."""
    schema = OmegaConf.get_type(node)
    fields = key_names(schema) if is_dataclass(schema) else None
    for name in node:
        if fields is not None and name not in fields:
            close = get_close_matches(name, fields, 1)
            here = f"Did you mean {prefix}{close[0]}?" if close else f"Here are {', '.join(prefix + f for f in fields)}"
            raise ConfigError(f"{prefix}{name}: there is no such key, and nothing would read it. {here}")
        if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name):
            continue
        child = node[name]
        if isinstance(child, DictConfig):
            check_known(child, f"{prefix}{name}.")


def check_nodes(cfg: DictConfig) -> None:
    """Check that what an option of a group fills in is there, where a value was typed in its place."""
    for name in cfg.model:
        require(name in (*ROLES, "lora"), f"model.{name}: a model's parts are {', '.join(ROLES)} and lora")
    lora = cfg.model.get("lora")
    require(lora is None or isinstance(lora, DictConfig),
            f"model.lora={lora}: an option of a group is chosen with slashes: model/lora={lora}")  # fmt: skip
    nodes = [(f"model.{role}", f"model/{role}", cfg.model.get(role)) for role in ROLES]
    nodes += [(f"data.sources.{name}", "data", node) for name, node in cfg.data.sources.items()]
    nodes += [(f"evaluation.{name}.source", "evaluation", e.source) for name, e in cfg.evaluation.items()]
    nodes.append(("optim", "optim", cfg.optim))
    nodes += [(group, group, cfg[group]) for group in ("loss", "profiler") if cfg[group] is not None]
    if isinstance(cfg.optim.get("schedule"), DictConfig):
        nodes.append(("optim.schedule", "optim/schedule", cfg.optim.schedule))
    for group in ("logger", "callbacks"):
        nodes += [(f"{group}.{name}", group, node) for name, node in cfg[group].items()]
    if cfg.trainer.strategy != "auto":
        nodes.append(("trainer.strategy", "trainer/strategy", cfg.trainer.strategy))
    for key, group, node in nodes:
        if not isinstance(node, DictConfig) or "_target_" not in node:
            name = key.rpartition(".")[2]
            require(
                name != "_target_", f"{group}: the YAML of {node} has to begin with the line  # @package {group}.NAME"
            )
            require(not key.startswith("data.sources.") or not isinstance(node, DictConfig),
                    f"{key}={node}: no such source is chosen: name it in data/source=[..,{name}], or take it out by "
                    f"'~{key}'")  # fmt: skip
            option = node if isinstance(node, str) else "OPTION"
            how = "an option of a group is chosen with slashes: " if "/" in group else "choose an option of a group: "
            require(False, f"{key}={node}: {how}{group}={option}")
        try:
            for target in targets(OmegaConf.to_container(node)):
                check_target(target, cfg.plugins)
            if key.startswith("model.") and isinstance(node.get("path"), str):
                locate(node.path, cfg.paths.models)
        except ConfigError as error:
            raise ConfigError(f"{key}.{error}") from error
