"""What is known of trained weights: their description, and what the run that wrote them left beside.

All of it is data that somebody else may have written. A file that is not there, or is not what a run writes, counts as
absent: a card leaves out what is not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from visllama.config.replay import read_config
from visllama.errors import ConfigError
from visllama.evaluation.metrics_file import judged, mapping, read_metrics
from visllama.files import read_regular
from visllama.model.visllama import part_of
from visllama.model.weights import TENSORS_FILE, open_tensors, read_description


class RunFacts(NamedTuple):
    """What is known of trained weights; what is not known is empty.

    Attributes:
        description: What `visllama.json` says.
        num_parameters: How many numbers each trained part has.
        folder: The run's folder; None where the weights lie in none.
        metrics: What `metrics.json` says.
        config: What `config.yaml` says, its `${...}` as they stand.
        words: What was typed behind `visllama train`; None where that is not known.
        first: Of the run that these weights began from, where it is found.
    """

    description: dict[str, Any]
    num_parameters: dict[str, int]
    folder: Path | None
    metrics: dict[str, Any]
    config: dict[str, Any]
    words: list[str] | None
    first: RunFacts | None

    @property
    def evaluations(self) -> dict[str, dict]:
        """Return the evaluations that have a score, by name; a name that is no plain file name is none."""
        return judged(self.metrics)

    @property
    def provenance(self) -> dict[str, Any]:
        """Return what made the run's figures."""
        return mapping(self.metrics, "provenance")


def read_run(weights: Path) -> RunFacts:
    """Read what is known of trained weights, and of the run whose folder they lie in.

    Raises:
        ConfigError: If the folder holds no weights of ours.
    """
    return _read(Path(weights), with_first=True)


def _read(weights: Path, with_first: bool) -> RunFacts:
    description = read_description(weights)
    num_parameters = _count(weights / TENSORS_FILE)
    folder = weights.resolve().parent
    metrics = _or_nothing(lambda: read_metrics(folder))
    if not mapping(metrics, "provenance"):  # no run of ours has ended there
        return RunFacts(description, num_parameters, None, {}, {}, None, None)
    config = _or_nothing(lambda: read_config(folder / "config.yaml"))
    facts = RunFacts(description, num_parameters, folder, metrics, config, _read_words(folder), None)
    return facts._replace(first=_find_first(facts)) if with_first else facts


def _or_nothing(read: Callable[[], object]) -> dict[str, Any]:
    try:
        found = read()
    except (OSError, ValueError, RecursionError, ConfigError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_words(folder: Path) -> list[str] | None:
    """Return what was typed: of `command.yaml`, which holds Hydra's options too, else of what Hydra wrote."""
    for path in (folder / "command.yaml", folder / ".hydra" / "overrides.yaml"):
        try:
            content = read_regular(path)
            if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(content)):
                continue
            written = yaml.safe_load(content)
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            continue
        words = [*_list(written, "options"), *_list(written, "overrides")] if isinstance(written, dict) else written
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return words
    return None


def _list(written: Mapping, key: str) -> list:
    return written[key] if isinstance(written.get(key), list) else []


def _count(path: Path) -> dict[str, int]:
    """Count the numbers of each trained part, by the header of the tensors' file.

    Raises:
        ConfigError: If it is no safetensors file.
    """
    counts: dict[str, int] = {}
    with open_tensors(path) as file:
        for name in file.keys():  # noqa: SIM118 (it is no mapping)
            counts[part_of(name)] = counts.get(part_of(name), 0) + math.prod(file.get_slice(name).get_shape())
    return counts


def _find_first(facts: RunFacts) -> RunFacts | None:
    """Return the run that this one began from, looked for where `init_from` says, from the run's folder upwards.

    A run that somebody else wrote could name any folder here: its base models have to be the same.
    """
    named = facts.provenance.get("init_from")
    if not isinstance(named, str) or not named or ".." in Path(named).parts:
        return None
    for above in (Path.cwd(), *facts.folder.parents):
        weights = above / named
        if not (weights / TENSORS_FILE).is_file():
            continue
        try:
            first = _read(weights, with_first=False)
        except ConfigError:
            continue
        is_same = first.description["base_sha256"] == facts.description["base_sha256"]
        return first if is_same and first.folder not in (None, facts.folder) else None
    return None
