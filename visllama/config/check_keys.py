"""Check the keys of a configuration: that something reads them, and that options have filled in their groups."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from visllama.config.instantiate import targets
from visllama.config.overrides import key_of
from visllama.config.schema import key_names
from visllama.errors import ConfigError, require
from visllama.model.locate import locate
from visllama.plugins import ROLES, check_target


def check_typed(verb: str, read: Sequence[str]) -> None:
    """Check that a verb reads every key of `trainer` that stands on the command line.

    Keys of `trainer` from YAML files are not looked at. Outside of a Hydra job, nothing is checked.

    Args:
        verb: The verb, for the message.
        read: The names below `trainer` that the verb reads, for example ("accelerator", "precision").

    Raises:
        ConfigError: If another key was typed; the message names it, and the keys that are read.
    """
    for word in _typed():
        key = key_of(word)
        group, *names = re.split(r"[./]", key)
        if group != "trainer" or not names or names[0] in read:
            continue
        keys_read = [f"trainer.{name}" for name in read]
        listed = ", ".join(keys_read) or "none of trainer.*, since no model is loaded"
        raise ConfigError(f"{key}: {verb} does not read it: leave it out. It reads {listed}")


def check_groups_typed(mode: str, read: Sequence[str], reason: str) -> None:
    """Check that every override on the command line begins with a name that this mode of a verb reads.

    Outside of a Hydra job, nothing is checked.

    Args:
        mode: The words that choose the mode, for the message, for example "inspect weights=".
        read: The first names of the keys and groups that are read, for example "trainer" for all of `trainer.*`.
        reason: Why the others are not read, for the message.

    Raises:
        ConfigError: If another key was typed; the message names it, and the names that are read.
    """
    for word in _typed():
        key = key_of(word)
        first_name, *_ = re.split(r"[./@]", key)
        if first_name in read:
            continue
        names = [name for name in read if name != "hydra"]
        listed = ", ".join(names)
        raise ConfigError(f"{key}: {mode} does not read it, {reason}: leave it out. It reads {listed}")


def check_not_typed(key: str, reason: str) -> None:
    """Check that a key does not stand on the command line.

    Its default in a YAML file is allowed. Outside of a Hydra job, nothing is checked.

    Args:
        key: The dotted key, as "num_pictures".
        reason: Why nothing reads it, for the message.

    Raises:
        ConfigError: If the key was typed; the message names it and gives the reason.
    """
    typed_keys = map(key_of, _typed())
    if key in typed_keys:
        raise ConfigError(f"{key}: {reason}: leave it out")


def _typed() -> list[str]:
    """Return the overrides that were typed for the running job; an empty list outside of a Hydra job."""
    if not HydraConfig.initialized():
        return []
    return list(HydraConfig.get().overrides.task)


def check_known(node: DictConfig, prefix: str = "") -> None:
    """Check that every key of a configuration, at any depth, is one that its schema has.

    A typed `+KEY=VALUE` adds a key without regard to the schema, and nothing would read it. Nodes without a schema, as
    the arguments of a class, may have any key; the nodes inside them are looked at.

    Args:
        node: The whole configuration, or a node of it.
        prefix: The dotted key of `node` with a dot behind it, for the message; empty for the whole configuration.

    Raises:
        ConfigError: At the first unknown key; the message names it, and the closest known key or else all of them.
    """
    schema = OmegaConf.get_type(node)
    # A node without a class, as that of a source, takes any key.
    known = key_names(schema) if is_dataclass(schema) else None

    for name in node:
        key = f"{prefix}{name}"
        if known is not None and name not in known:
            hint = _known_instead(name, known, prefix)
            raise ConfigError(f"{key}: there is no such key, and nothing would read it. {hint}")

        # Reading the value of one of these would fail, or leave the node.
        if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name):
            continue
        child = node[name]
        if isinstance(child, DictConfig):
            check_known(child, f"{key}.")


def _known_instead(name: str, known: Sequence[str], prefix: str) -> str:
    """Return a sentence with the known key of the most similar name, or with all known keys where none is similar."""
    close = get_close_matches(name, known, 1)
    if close:
        return f"Did you mean {prefix}{close[0]}?"
    keys = [f"{prefix}{other}" for other in known]
    listed = ", ".join(keys)
    return f"Here are {listed}"


class _Place(NamedTuple):
    """A key of the configuration that is filled in by choosing an option of a group.

    Attributes:
        key: The dotted key, as "model.connector".
        group: The group whose options fill it in, as "model/connector".
        node: The value that stands at the key now.
    """

    key: str
    group: str
    node: object


def check_nodes(cfg: DictConfig) -> None:
    """Check that each key which an option of a group fills in holds a node with an allowed `_target_`.

    These keys are the model's parts, the sources of data and of evaluations, the optimizer, and, if they are set, the
    schedule, loss, profiler, loggers, callbacks and strategy. The `path` of a model's part must name a folder that
    exists, a small model that comes with visllama (`visllama:NAME`), or have the form of an id on the Hugging Face hub
    (NAME or OWNER/NAME). No class is imported.

    Args:
        cfg: The configuration of a run of `train`.

    Raises:
        ConfigError: At the first mistake; the message names the key, the value found, and how to choose an option.
    """
    for name in cfg.model:
        require(
            name in (*ROLES, "lora"),
            f"model.{name}: a model's parts are {', '.join(ROLES)} and lora",
        )
    lora = cfg.model.get("lora")
    require(
        lora is None or isinstance(lora, DictConfig),
        f"model.lora={lora}: an option of a group is chosen with slashes: model/lora={lora}",
    )

    for place in _places(cfg):
        node = place.node
        if not isinstance(node, DictConfig) or "_target_" not in node:
            raise _is_no_option(place)

        plain_node = OmegaConf.to_container(node)
        try:
            for target in targets(plain_node):
                check_target(target, cfg.plugins)
            if place.key.startswith("model.") and isinstance(node.get("path"), str):
                locate(node.path, cfg.paths.models)
        except ConfigError as error:
            raise ConfigError(f"{place.key}.{error}") from error


def _places(cfg: DictConfig) -> Iterator[_Place]:
    """Yield each key of a configuration that an option of a group fills in, with the group and the present value."""
    model = cfg.model
    for role in ROLES:
        yield _Place(f"model.{role}", f"model/{role}", model.get(role))
    for name, source in cfg.data.sources.items():
        yield _Place(f"data.sources.{name}", "data", source)
    for name, evaluation in cfg.evaluation.items():
        yield _Place(f"evaluation.{name}.source", "evaluation", evaluation.source)

    optim = cfg.optim
    yield _Place("optim", "optim", optim)
    for group in ("loss", "profiler"):
        node = cfg[group]
        if node is not None:
            yield _Place(group, group, node)

    # A schedule that is a string is one of ours, and a strategy "auto" is Lightning's: neither is a class.
    schedule = optim.get("schedule")
    if isinstance(schedule, DictConfig):
        yield _Place("optim.schedule", "optim/schedule", schedule)
    for group in ("logger", "callbacks"):
        for name, node in cfg[group].items():
            yield _Place(f"{group}.{name}", group, node)
    strategy = cfg.trainer.strategy
    if strategy != "auto":
        yield _Place("trainer.strategy", "trainer/strategy", strategy)


def _is_no_option(place: _Place) -> ConfigError:
    """Return the error of a place that holds something else than a node with a `_target_`."""
    key, group, node = place
    _, _, name = key.rpartition(".")

    # Without its package line, the keys of an option's YAML stand where the names of options belong.
    if name == "_target_":
        package_line = f"# @package {group}.NAME"
        return ConfigError(f"{group}: the YAML of {node} has to begin with the line  {package_line}")

    # Overrides of a source that is not chosen make a node without a class.
    is_source = key.startswith("data.sources.")
    if is_source and isinstance(node, DictConfig):
        choice = f"data/source=[..,{name}]"
        return ConfigError(f"{key}={node}: no such source is chosen: name it in {choice}, or take it out by '~{key}'")

    option = node if isinstance(node, str) else "OPTION"
    how = "choose an option of a group: "
    if "/" in group:
        how = "an option of a group is chosen with slashes: "
    return ConfigError(f"{key}={node}: {how}{group}={option}")
