"""Read facts about trained weights from `visllama.json` and from the files of the run that wrote them.

Somebody else may have written all of these files. Without a valid `visllama.json` nothing is read; of the run's other
files, one that is missing or is not what a run writes counts as absent, and a card leaves out what is not known.
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
    """Facts about trained weights and about their run; `read_run` reads them.

    Attributes:
        description: The content of `visllama.json`.
        num_parameters: The number of parameters that the weights hold of each trained part.
        folder: The run's folder; None if the weights do not lie in one.
        metrics: The content of `metrics.json`; empty if it is not known.
        config: The content of `config.yaml`, in which `${...}` is not resolved; empty if it is not known.
        words: The words that were typed after `visllama train`, one for each argument of the command line; None if
            they are not known.
        first: The facts about the run whose weights this run began from (its `init_from`); None if there is none, or
            it is not found.
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
        """Return the entries of the run's evaluations in `metrics.json`, each by the name of the evaluation.

        An evaluation without a finite score, or whose name is no plain file name, is left out.
        """
        return judged(self.metrics)

    @property
    def provenance(self) -> dict[str, Any]:
        """Return the versions, commit, machine, seed and more that `metrics.json` has of the run; empty if unknown."""
        return mapping(self.metrics, "provenance")


def read_run(weights: Path) -> RunFacts:
    """Read the facts about trained weights, about the run in whose folder they lie, and about its first stage.

    Tensors are not loaded. The first stage is the run named by this run's `init_from`, if its folder is found.

    Args:
        weights: A run's `weights/` folder, or any folder with `visllama.json` and `visllama.safetensors`.

    Raises:
        ConfigError: If the folder holds no weights of visllama, or weights in a version of the format that this release
            does not read.
    """
    facts = _read_one_run(Path(weights))
    return facts._replace(first=_find_first(facts))


def _read_one_run(weights: Path) -> RunFacts:
    """Return the facts about weights and their run, without its first stage.

    Raises:
        ConfigError: If the folder holds no weights of visllama.
    """
    description = read_description(weights)
    num_parameters = _count_parameters(weights / TENSORS_FILE)

    # Without provenance no run has ended in this folder: its other files would be of something else.
    folder = weights.resolve().parent
    metrics = _read_or_empty(lambda: read_metrics(folder))
    if not mapping(metrics, "provenance"):
        return RunFacts(description, num_parameters, folder=None, metrics={}, config={}, words=None, first=None)

    config = _read_or_empty(lambda: read_config(folder / "config.yaml"))
    words = _read_words(folder)
    return RunFacts(description, num_parameters, folder, metrics, config, words, first=None)


def _read_or_empty(read: Callable[[], object]) -> dict[str, Any]:
    """Return the dict that a function reads; an empty one if the function raises or returns something else."""
    try:
        content = read()
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_words(folder: Path) -> list[str] | None:
    """Return the words of the command line that began a run, one for each argument; None if they cannot be read.

    Args:
        folder: The run's folder. They are in its `command.yaml`, which also has Hydra's options, or for older runs in
            `.hydra/overrides.yaml`.
    """
    for path in (folder / "command.yaml", folder / ".hydra" / "overrides.yaml"):
        try:
            content = read_regular(path)
            # A few aliases of aliases would fill the memory, and no run writes any.
            if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(content)):
                continue
            document = yaml.safe_load(content)
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            continue

        # Hydra's own file is a list.
        if isinstance(document, dict):
            words = [*_list_at(document, "options"), *_list_at(document, "overrides")]
        else:
            words = document

        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return words
    return None


def _list_at(document: Mapping, key: str) -> list:
    """Return the list at a key; an empty list if there is nothing, or something else."""
    value = document.get(key)
    return value if isinstance(value, list) else []


def _count_parameters(path: Path) -> dict[str, int]:
    """Return the number of parameters of each trained part, counted in the header of the tensors' file.

    Raises:
        ConfigError: If the file is no safetensors file.
    """
    counts: dict[str, int] = {}
    with open_tensors(path) as file:
        for name in file.keys():  # noqa: SIM118 (it is no mapping)
            part = part_of(name)
            # A slice reads nothing but the header, however large the tensor is.
            shape = file.get_slice(name).get_shape()
            num_before = counts.get(part, 0)
            counts[part] = num_before + math.prod(shape)
    return counts


def _find_first(facts: RunFacts) -> RunFacts | None:
    """Return the facts about the run that a run began from; None if there is none, or it is not found.

    The path `init_from` of the run is looked for below the current folder, and below each folder above the run's.
    """
    path = facts.provenance.get("init_from")
    if facts.folder is None or not isinstance(path, str) or not path:
        return None
    if ".." in Path(path).parts:
        return None

    # A relative path counts from the folder in which the run was started, which is often one above its own.
    for parent in (Path.cwd(), *facts.folder.parents):
        weights = parent / path
        if not (weights / TENSORS_FILE).is_file():
            continue
        try:
            first = _read_one_run(weights)
        except ConfigError:
            continue

        # A run that somebody else wrote could name any folder here: its base models have to be the same.
        has_same_bases = first.description["base_sha256"] == facts.description["base_sha256"]
        is_other_run = first.folder is not None and first.folder != facts.folder
        return first if has_same_bases and is_other_run else None
    return None
