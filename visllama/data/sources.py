"""Where records come from: the sources that a config names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from omegaconf import DictConfig, OmegaConf
from torch.utils.data import ConcatDataset

from visllama.config import ConfigError
from visllama.plugins import class_of_target
from visllama.signatures import check_arguments


class Source(Protocol):
    """Where records come from: sized, random access; a record holds `key`, `image` (PIL) and `captions`.

    Its class takes `split` ("train", "val" or "test") beside what its YAML says. It may have `num_pairs`, its
    image-caption pairs, where they are more than its records.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


def build_source(nodes: Mapping[str, Mapping], split: str, plugins: Sequence[str]) -> Source:
    """Make the sources that a config names (keys: where they stand in it), several of them one behind the other.

    Raises:
        ConfigError: If one cannot be made, or holds nothing, naming its key.
    """
    sources = []
    for key, node in nodes.items():
        plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
        arguments = {name: value for name, value in plain.items() if name != "_target_"}
        try:
            found = class_of_target("source", plain["_target_"], plugins)
        except ConfigError as error:
            raise ConfigError(f"{key}.{error}") from error
        check_arguments(key, found, arguments, {"split"})
        try:
            source = found(split=split, **arguments)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from error
        if len(source) == 0:
            raise ConfigError(f"{key}: holds no record of split={split}")
        sources.append(source)
    return sources[0] if len(sources) == 1 else ConcatDataset(sources)


def count_pairs(source: Source) -> int:
    """Give the number of image-caption pairs."""
    if isinstance(source, ConcatDataset):
        return sum(count_pairs(part) for part in source.datasets)
    return getattr(source, "num_pairs", len(source))


def judged_sources(evaluations: Mapping[str, Mapping], plugins: Sequence[str]) -> dict[str, Source]:
    """Make each evaluation's source; early, so that a missing file is found before any weight is loaded."""
    return {
        name: build_source({f"evaluation.{name}.source": config["source"]}, config["split"], plugins)
        for name, config in evaluations.items()
    }
