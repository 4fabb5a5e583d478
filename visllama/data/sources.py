"""Where records come from: the sources that a config names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from visllama.data.record import check_record
from visllama.data.source import Source, item_counts
from visllama.errors import BadRecord, ConfigError
from visllama.plugins import class_of_target
from visllama.signatures import check_arguments

MIX_KEYS = ("weight", "prompt")
"""What a source's node may say beside its class and that class's arguments: how it is mixed in."""
_KIND_OF_TASK = {"caption": "captions", "vqa": "questions"}


def source_class(key: str, node: Mapping, plugins: Sequence[str]) -> tuple[type[Source], dict[str, Any]]:
    """Return the class of the source that stands in a config at `key`, and the arguments that it is given there.

    Raises:
        ConfigError: If it is no source, or does not take these arguments, naming the key.
    """
    try:
        kind = class_of_target("source", node["_target_"], plugins)
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from error
    if not issubclass(kind, Source):
        raise ConfigError(
            f"{key}._target_={node['_target_']}: is no source: derive it from visllama.data.source.Source, as "
            f"class {kind.__name__}(Source)"
        )

    not_arguments = ("_target_", *MIX_KEYS)
    arguments = {name: value for name, value in node.items() if name not in not_arguments}
    check_arguments(key, kind, arguments, {"split"})
    return kind, arguments


def build_source(key: str, node: Mapping, split: str, plugins: Sequence[str]) -> Source:
    """Build the source that stands in a config at `key`.

    Raises:
        ConfigError: If it cannot be made, or holds nothing, naming the key.
    """
    kind, arguments = source_class(key, node, plugins)
    try:
        # The abstract class names no `split`; `source_class` has checked that this one takes it.
        source = cast("Callable[..., Source]", kind)(split=split, **arguments)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error
    except Exception as error:  # a class of the user's may raise any type
        if kind.__module__.startswith("visllama."):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(
            f"{key}._target_={node['_target_']}: cannot be made for split={split} ({reason}); a source is made for "
            f"train, and for val unless trainer.val_check_interval=null"
        ) from error

    if len(source) == 0:
        raise ConfigError(f"{key}: holds no record of split={split}")
    _check_first(key, source)
    return source


def _check_first(key: str, source: Source) -> None:
    """Check the first record of a user's own source.

    A class that makes one record wrongly makes all of them so: every sample would be masked, and nothing learned.

    Raises:
        ConfigError: If it is no record. The message names the key, what was found, and what a record holds.
    """
    if type(source).__module__.startswith("visllama."):
        return

    try:
        record = source[0]
    except BadRecord:
        # One record that cannot be read is masked, and counted, when its turn comes.
        return

    try:
        check_record(record)
    except BadRecord as error:
        raise ConfigError(
            f"{key}._target_={type(source).__module__}.{type(source).__name__}: its first record {error.detail}"
        ) from error


def build_sources(nodes: Mapping[str, Mapping], split: str, plugins: Sequence[str]) -> dict[str, Source]:
    """Build every source of `data.sources`, by name."""
    return {name: build_source(f"data.sources.{name}", node, split, plugins) for name, node in nodes.items()}


def judged_sources(evaluations: Mapping[str, Mapping], plugins: Sequence[str]) -> dict[str, Source]:
    """Build each evaluation's source; early, so that a missing file is found before any weight is loaded.

    Raises:
        ConfigError: If one holds records of another kind than its task judges.
    """
    sources = {}
    for name, evaluation in evaluations.items():
        key = f"evaluation.{name}.source"
        task = evaluation["task"]
        wanted = _KIND_OF_TASK[task]
        source = build_source(key, evaluation["source"], evaluation["split"], plugins)

        others = [f"{count} of {kind}" for kind, count in source.kinds.items() if kind != wanted]
        if others:
            raise ConfigError(f"{key}: task={task} judges {wanted}, and it holds records {', '.join(others)}")
        sources[name] = source
    return sources


def fingerprint(source: Source) -> str:
    """Return a hash of what a source holds, as far as its `fingerprint` tells, and of how its items lie in it."""
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    digest = hashlib.sha256(f"{kind} {len(source)} {source.fingerprint}".encode())
    for counts in (source.shard_items, item_counts(source)):
        if counts is not None:
            digest.update(np.asarray(counts, dtype="<i8").tobytes())
    return digest.hexdigest()[:16]
