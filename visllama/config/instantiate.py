"""Objects that a config names by `_target_`: each is resolved first, then Hydra calls it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from visllama.plugins import resolve


def build(node: Mapping, plugins: Sequence[str] = ()) -> Any:
    """Instantiate a config node (as a plain call of its `_target_`), after resolving every `_target_` inside it."""
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
    for target in targets(plain):
        resolve(target, plugins)
    return instantiate(plain, _convert_="all")


def targets(node: object) -> Iterator[object]:
    """Yield every `_target_` inside a plain config, however deep it lies."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from targets(value)
