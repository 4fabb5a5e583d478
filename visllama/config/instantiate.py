"""Build the object that a config node describes by its `_target_`, once all its classes are known to be allowed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from visllama.plugins import resolve


def build(node: Mapping, plugins: Sequence[str] = ()) -> Any:
    """Return the object that a config node describes: the class `_target_`, called with the node's other values.

    Nodes inside it that have a `_target_` are built too, and references (`${...}`) are resolved. The node is not
    changed.

    Args:
        node: The node, as a plain mapping or as OmegaConf's.
        plugins: The names of the user's packages that a `_target_` may come from, besides those that are always
            allowed.

    Raises:
        ConfigError: If a `_target_` anywhere inside the node is not allowed, or names no class. Nothing is built then.
        InstantiationException: Hydra's error, if a class raises an error when it is called.
    """
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)

    # Hydra imports whatever it is told to: every target is checked before it sees any of them.
    for target in targets(plain):
        resolve(target, plugins)
    return instantiate(plain, _convert_="all")


def targets(node: object) -> Iterator[object]:
    """Yield every value of a key `_target_` inside a plain config, at any depth, the outermost first.

    Args:
        node: Nested dictionaries and lists; anything else yields nothing.
    """
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())

    if isinstance(node, list):
        for value in node:
            yield from targets(value)
