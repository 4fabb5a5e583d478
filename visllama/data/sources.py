"""Where records come from: the sources that a config names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from omegaconf import DictConfig, OmegaConf

from visllama.config import ConfigError
from visllama.plugins import class_of_target
from visllama.signatures import check_arguments

MIX_KEYS = ("weight", "prompt")
"""What a source's node may say beside its class and that class's arguments: how it is mixed in."""
_BLOCKS = 2**16
_JUDGED = {"caption": "captions", "vqa": "questions"}


class Source(Protocol):
    """Where records come from: sized, random access.

    A record holds `key`; `image`, or `images` where there is not one; and one of `captions`, `questions` and
    `conversations`, as `visllama.data.record` has them. An image is PIL, or the bytes of a JPEG, PNG or WebP file. Its
    class takes `split` ("train", "val" or "test") beside what its YAML says. It may raise
    `visllama.data.faults.BadRecord` for a record that it cannot read, and may have: `num_pairs`, its things to learn,
    where they are more than its records; `kinds`, its records by the kind of their text; `shard_sizes`, the records of
    each shard, where those of one are best read together; `fingerprint`, which tells when it holds something else;
    `origin`, which says in words where its records come from.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


def build_source(key: str, node: Mapping, split: str, plugins: Sequence[str]) -> Source:
    """Make the source that stands in a config at `key`.

    Raises:
        ConfigError: If it cannot be made, or holds nothing, naming the key.
    """
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
    arguments = {name: value for name, value in plain.items() if name not in ("_target_", *MIX_KEYS)}
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
    return source


def build_sources(nodes: Mapping[str, Mapping], split: str, plugins: Sequence[str]) -> dict[str, Source]:
    """Make every source of `data.sources`, by name."""
    return {name: build_source(f"data.sources.{name}", node, split, plugins) for name, node in nodes.items()}


def judged_sources(evaluations: Mapping[str, Mapping], plugins: Sequence[str]) -> dict[str, Source]:
    """Make each evaluation's source; early, so that a missing file is found before any weight is loaded.

    Raises:
        ConfigError: If one holds records of another kind than its task judges.
    """
    made = {}
    for name, config in evaluations.items():
        key, wanted = f"evaluation.{name}.source", _JUDGED[config["task"]]
        made[name] = build_source(key, config["source"], config["split"], plugins)
        others = {kind: count for kind, count in getattr(made[name], "kinds", {}).items() if kind != wanted}
        if others:
            counted = ", ".join(f"{count} of {kind}" for kind, count in others.items())
            raise ConfigError(f"{key}: task={config['task']} judges {wanted}, and it holds records {counted}")
    return made


def count_pairs(source: Source) -> int:
    """Give the number of things to learn: image-caption pairs, questions, conversations."""
    return getattr(source, "num_pairs", len(source))


def shard_sizes(source: Source) -> Sequence[int]:
    """Give the records of each of a source's shards; one that names none is cut into blocks."""
    if hasattr(source, "shard_sizes"):
        return source.shard_sizes
    block = -(-len(source) // _BLOCKS)
    whole, rest = divmod(len(source), block)
    return [block] * whole + [rest] * bool(rest)


def origin(source: Source) -> str | None:
    """Return where a source's records come from, in words, as far as it says so itself."""
    return getattr(source, "origin", None)


def fingerprint(source: Source) -> str:
    """Tell what a source holds, as far as it says so itself."""
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    said = getattr(source, "fingerprint", None)
    return hashlib.sha256(f"{kind} {len(source)} {said}".encode()).hexdigest()[:16]
