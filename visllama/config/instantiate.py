"""Objects that a config names by `_target_`: each is resolved first, then Hydra calls it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from visllama.plugins import resolve


def build(node: Mapping, plugins: Sequence[str] = ()) -> Any:
    """Return the object that a config node describes: its `_target_`, called with the node's other values.

    Args:
        node: The node.
        plugins: The user's packages, which a `_target_` may name beside ours.

    Raises:
        ConfigError: If a `_target_` anywhere inside the node may not be named, or does not exist.
    """
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)

    # Hydra imports whatever it is told to: every target is checked before it sees any of them.
    for target in targets(plain):
        resolve(target, plugins)
    return instantiate(plain, _convert_="all")


def targets(node: object) -> Iterator[object]:
    """Yield every `_target_` inside a plain config, at whatever depth."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())

    if isinstance(node, list):
        for value in node:
            yield from targets(value)
