"""Read published figures from a file that a user has written, for marked rows of a table beside the rows of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from visllama.console import printable
from visllama.errors import ConfigError
from visllama.evaluation.metrics_file import mapping, numbers
from visllama.files import read_regular

_KEYS = ("name", "metrics", "tokenizer", "split", "source")
_TEXTS = ("name", "tokenizer", "split", "source")
_LARGEST = {"CIDEr": 10.0, "accuracy": 100.0, "accuracy_normalise_all": 100.0}
"""The largest value that a metric can have on our scale; any other metric ends at 1."""


class Published(NamedTuple):
    """A system whose figures somebody has published.

    Attributes:
        name: The system's name.
        metrics: The published figures by the metric's name, on the scale of `metrics.json` (a CIDEr of 113 is 1.13).
        source: The publication that the figures are from.
        tokenizer: The name of the tokenizer that split the captions for scoring; None where that is not known.
        split: The split of the data set that the system was scored on; None where that is not known.
    """

    name: str
    metrics: dict[str, float]
    source: str
    tokenizer: str | None = None
    split: str | None = None


def read_published(path: Path) -> list[Published]:
    """Read published systems from a YAML file, in its order.

    Args:
        path: The file: a list of mappings with the keys `name`, `metrics` and `source`, and where they are known
            `tokenizer` and `split`.

    Raises:
        ConfigError: If the file cannot be read, holds YAML aliases, or is no list with entries; or if an entry lacks
            `name`, `metrics` or `source`, has an unknown key, or a figure that its metric cannot have (CIDEr ends at
            10, accuracy at 100, any other metric at 1).
    """
    try:
        content = read_regular(path)
        # A few lines of aliases of aliases can expand to more than the memory holds.
        has_aliases = any(isinstance(token, yaml.AliasToken) for token in yaml.scan(content))
        if has_aliases:
            raise ValueError("it has aliases, which can make it endless")
        entries = yaml.safe_load(content)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = printable(error)
        raise ConfigError(f"published={path}: cannot be read: {reason}") from error

    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"published={path}: holds no list: write  - {{name: X, metrics: {{CIDEr: 1.13}}, source: Y}}")

    published = []
    for number, entry in enumerate(entries, start=1):
        where = f"published={path}: entry {number}"
        published.append(_read_entry(where, entry))
    return published


def _read_entry(where: str, entry: object) -> Published:
    """Return one published system.

    Args:
        where: The start of each error message: the file and the number of the entry.
        entry: What the file holds there, of any type.

    Raises:
        ConfigError: If the entry is wrong.
    """
    all_keys = ", ".join(_KEYS)
    if not isinstance(entry, Mapping):
        kind = type(entry).__name__
        raise ConfigError(f"{where}: is {kind}, no mapping of {all_keys}")
    # A misspelt key would otherwise be left out in silence.
    unknown = [printable(key) for key in entry if key not in _KEYS]
    if unknown:
        raise ConfigError(f"{where}: {unknown[0]}: there is no such key: it has {all_keys}")

    for key in _TEXTS:
        if key in entry and not isinstance(entry[key], str):
            value = printable(entry[key])
            raise ConfigError(f"{where}: {key}={value}: must be a text")
    for key in ("name", "source"):
        if not entry.get(key):
            raise ConfigError(f"{where}: has no {key}: a published row names {key}")

    return Published(
        name=entry["name"],
        metrics=_read_metrics(where, entry),
        source=entry["source"],
        tokenizer=entry.get("tokenizer"),
        split=entry.get("split"),
    )


def _read_metrics(where: str, entry: Mapping) -> dict[str, float]:
    """Return the figures of one published system by the metric's name.

    Raises:
        ConfigError: If there is none, or one is no number or none that its metric can have.
    """
    metrics = mapping(entry, "metrics")
    figures = numbers(metrics)
    # `numbers` keeps finite numbers alone: one that it has left out is wrong.
    if not metrics or len(figures) < len(metrics):
        metrics_text = printable(entry.get("metrics"))
        raise ConfigError(f"{where}: metrics={metrics_text}: give numbers, as {{CIDEr: 1.13}}")

    # Papers print x100 what `metrics.json` holds: a figure copied as it stands would be beyond the largest value.
    for name, value in figures.items():
        largest = _LARGEST.get(name, 1.0)
        if not 0 <= value <= largest:
            metric_name = printable(name)
            raise ConfigError(
                f"{where}: {metric_name}={value}: lies between 0 and {largest:g} on pycocoevalcap's own scale, as "
                f"metrics.json has it: a CIDEr of 113 is 1.13"
            )
    return {name: float(value) for name, value in figures.items()}


def check_comparable(
    published: Sequence[Published],
    conditions: Mapping[str, Mapping[str, object]],
    mixed: bool,
) -> None:
    """Check that published figures were scored with the tokenizer and on the split that the runs were judged with.

    A tokenizer or split that is not known on either side is not compared.

    Args:
        published: The published systems.
        conditions: The conditions that the runs were judged under, by the evaluation's name, for each evaluation that
            has a column in the table.
        mixed: Whether tokenizers and splits may differ; if true, nothing is checked.

    Raises:
        ConfigError: If a tokenizer or split differs and `mixed` is false. The message names the row, and both values.
    """
    if mixed:
        return

    for system in published:
        for evaluation, judged in conditions.items():
            for key in ("tokenizer", "split"):
                theirs = getattr(system, key)
                ours = judged.get(key)
                is_known = theirs is not None and ours is not None
                if is_known and theirs != ours:
                    name = printable(system.name)
                    their_value = printable(theirs)
                    our_value = printable(ours)
                    raise ConfigError(
                        f"published: {name} has {key}={their_value}, and {evaluation} of the runs {key}={our_value}: "
                        f"such figures do not compare: judge the runs by that, leave the row out, or put it beside "
                        f"them all the same by mixed=true"
                    )
