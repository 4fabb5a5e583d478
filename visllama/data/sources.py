"""Build the sources of records that a config names, each by a mapping with `_target_` (its class) and arguments."""

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
"""The keys of a source's config that are no arguments of its class: its share of the samples, and its own prompt."""
_KIND_OF_TASK = {"caption": "captions", "vqa": "questions"}


def source_class(key: str, node: Mapping, plugins: Sequence[str]) -> tuple[type[Source], dict[str, Any]]:
    """Return the class that a source's config names, and the arguments that the config has for it; build nothing.

    The argument `split`, which every class takes, is not among them.

    Args:
        key: Where the config stands, as `data.sources.coco`, for messages.
        node: The source's config: `_target_` (the path of the class), the class's arguments, and any of `MIX_KEYS`.
        plugins: The names of the user's packages from which classes may be taken.

    Raises:
        ConfigError: If the class is not allowed, or does not derive from `Source`, or an argument is missing, unknown
            or of another type. The message names the key.
        KeyError: If the config has no `_target_`.
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

    # What is left is for the class; `split` is not among it, since the program adds that.
    not_arguments = ("_target_", *MIX_KEYS)
    arguments = {name: value for name, value in node.items() if name not in not_arguments}
    check_arguments(key, kind, arguments, {"split"})
    return kind, arguments


def build_source(key: str, node: Mapping, split: str, plugins: Sequence[str]) -> Source:
    """Build and return the source that a config names; if its class is a user's own, check its first record too.

    Args:
        key: Where the config stands, as `data.sources.coco`, for messages.
        node: The source's config: `_target_` (the path of the class), the class's arguments, and any of `MIX_KEYS`.
        split: The part of the data that the source is to hold, passed to its class: "train", "val" or "test".
        plugins: The names of the user's packages from which classes may be taken.

    Raises:
        ConfigError: If the source cannot be built, holds no record, or its first record lacks something that a record
            must hold. The message names the key.
    """
    kind, arguments = source_class(key, node, plugins)
    try:
        # The abstract class names no `split`; `source_class` has checked that this one takes it.
        source = cast("Callable[..., Source]", kind)(split=split, **arguments)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error
    except Exception as error:  # a class of the user's may raise any type
        # An unexpected error of our own class is a fault of this program, whose traceback has to be seen.
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
    """Build all sources of a run for one split, and return them by name.

    Args:
        nodes: The configs of `data.sources`, by the sources' names.
        split: The part of the data that each source is to hold, passed to its class: "train", "val" or "test".
        plugins: The names of the user's packages from which classes may be taken.

    Raises:
        ConfigError: If a source cannot be built, holds no record, or its first record lacks something that a record
            must hold.
    """
    return {name: build_source(f"data.sources.{name}", node, split, plugins) for name, node in nodes.items()}


def judged_sources(evaluations: Mapping[str, Mapping], plugins: Sequence[str]) -> dict[str, Source]:
    """Build the source of each evaluation, and return them by the evaluations' names.

    Call it before weights are loaded, so that a missing file is found early.

    Args:
        evaluations: The configs of the evaluations, by name: `task` ("caption" or "vqa"), `source` and `split`.
        plugins: The names of the user's packages from which classes may be taken.

    Raises:
        ConfigError: If a source cannot be built, holds no record, or holds records of another kind than its task
            judges: captions for "caption", questions for "vqa".
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
    """Return a hash of a source, 16 hex digits long.

    It changes with the source's class, its number of records, its attribute `fingerprint`, and its numbers of items in
    each shard and in each record. Records are not read: if one changes and none of these do, the hash stays.
    """
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    digest = hashlib.sha256(f"{kind} {len(source)} {source.fingerprint}".encode())

    # The counts decide which item stands at which position, whatever the source's own fingerprint tells.
    for counts in (source.shard_items, item_counts(source)):
        if counts is not None:
            digest.update(np.asarray(counts, dtype="<i8").tobytes())

    return digest.hexdigest()[:16]
