"""Published figures, as a user writes them down: rows beside those of runs, marked as what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from visllama.console import printable
from visllama.errors import ConfigError
from visllama.evaluation.metrics_file import is_number, mapping, numbers
from visllama.files import read_regular

_KEYS = ("name", "metrics", "tokenizer", "split", "source")
_TEXTS = ("name", "tokenizer", "split", "source")
_LARGEST = {"CIDEr": 10.0, "accuracy": 100.0, "accuracy_normalise_all": 100.0}
"""The largest value that a metric can have on our scale; of all others 1."""


class Published(NamedTuple):
    """A system whose figures somebody has published.

    Attributes:
        name: What it is called.
        metrics: Its figures, on the scale of `metrics.json`.
        source: Where they were published.
        tokenizer: The tokens that its captions were scored on; None where that is not known.
        split: The split that it was scored on; None where that is not known.
    """

    name: str
    metrics: dict[str, float]
    source: str
    tokenizer: str | None = None
    split: str | None = None


def read_published(path: Path) -> list[Published]:
    """Read a list of `{name, metrics, source, tokenizer, split}` from a YAML file.

    Raises:
        ConfigError: Naming the entry, and what is wrong with it.
    """
    try:
        content = read_regular(path)
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(content)):
            raise ValueError("it has aliases, which can make it endless")
        entries = yaml.safe_load(content)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"published={path}: cannot be read: {printable(error)}") from error
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"published={path}: holds no list: write  - {{name: X, metrics: {{CIDEr: 1.13}}, source: Y}}")
    return [_read_entry(f"published={path}: entry {number}", entry) for number, entry in enumerate(entries, start=1)]


def _read_entry(where: str, entry: object) -> Published:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: is {type(entry).__name__}, no mapping of {', '.join(_KEYS)}")
    unknown = [printable(key) for key in entry if key not in _KEYS]
    if unknown:
        raise ConfigError(f"{where}: {unknown[0]}: there is no such key: it has {', '.join(_KEYS)}")
    for key in _TEXTS:
        if key in entry and not isinstance(entry[key], str):
            raise ConfigError(f"{where}: {key}={printable(entry[key])}: must be a text")
    for key in ("name", "source"):
        if not entry.get(key):
            raise ConfigError(f"{where}: has no {key}: a published row names {key}")
    metrics = mapping(entry, "metrics")
    found = numbers(metrics)
    if not metrics or len(found) < len(metrics):
        raise ConfigError(f"{where}: metrics={printable(entry.get('metrics'))}: give numbers, as {{CIDEr: 1.13}}")
    for name, value in found.items():
        largest = _LARGEST.get(name, 1.0)
        if not 0 <= value <= largest:
            raise ConfigError(
                f"{where}: {printable(name)}={value}: lies between 0 and {largest:g} on pycocoevalcap's own scale, "
                f"as metrics.json has it: a CIDEr of 113 is 1.13"
            )
    values = {name: float(value) for name, value in found.items() if is_number(value)}
    return Published(entry["name"], values, entry["source"], entry.get("tokenizer"), entry.get("split"))


def check_comparable(
    published: Sequence[Published], conditions: Mapping[str, Mapping[str, object]], mixed: bool
) -> None:
    """Refuse published figures that were made on other tokens or another split than those of the runs.

    What is not known of them is no ground to refuse them: the table says that it is not known.

    Args:
        published: The published figures.
        conditions: The conditions of a run in each evaluation that has a column, by its name.
        mixed: Whether they are put beside each other all the same.

    Raises:
        ConfigError: Naming the row, and both values.
    """
    if mixed:
        return
    for one in published:
        for evaluation, judged in conditions.items():
            for key in ("tokenizer", "split"):
                theirs = getattr(one, key)
                ours = judged.get(key)
                if theirs is not None and ours is not None and theirs != ours:
                    raise ConfigError(
                        f"published: {printable(one.name)} has {key}={printable(theirs)}, and {evaluation} of the runs "
                        f"{key}={printable(ours)}: such figures do not compare: judge the runs by that, leave the row "
                        f"out, or put it beside them all the same by mixed=true"
                    )
