"""Read `metrics.json`, which somebody else may have written: nothing in it is taken on trust."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visllama.files import read_regular

METRICS_FILE = "metrics.json"
_MOST_BYTES = 2**26
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read the `metrics.json` in a run's folder, and return its content; what stands in the object is not checked.

    Args:
        folder: The run's folder.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no regular file, is too large, or holds no JSON object.
    """
    try:
        content = json.loads(read_regular(folder / METRICS_FILE, _MOST_BYTES))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def judged(metrics: Mapping) -> dict[str, dict]:
    """Return the entries under `evaluations` that have at least one finite score, by the evaluation's name.

    An evaluation whose name is no plain file name is left out, since its name becomes part of paths. The entries are
    returned unchanged.

    Args:
        metrics: The content of metrics.json, as `read_metrics` returns it.
    """
    evaluations = {}
    for name, evaluation in mapping(metrics, "evaluations").items():
        scores = numbers(mapping(evaluation, "metrics"))
        if scores and _NAME.fullmatch(name):
            evaluations[name] = evaluation
    return evaluations


def mapping(node: object, *keys: str) -> dict[str, Any]:
    """Return the mapping under `node[key][key]...`; an empty one if a key is missing or its value is no mapping.

    Args:
        node: The outermost mapping, or any other value.
        keys: The keys to follow, the outermost first; without any, `node` itself is meant.
    """
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node if isinstance(node, dict) else {}


def numbers(node: Mapping) -> dict[str, float]:
    """Return the entries of a mapping whose values are finite numbers, with their keys as text; others are left out."""
    return {str(key): value for key, value in node.items() if is_number(value)}


def is_number(value: object) -> bool:
    """Return whether a value is an int or a float that is finite as a float; a bool is not."""
    # For Python a bool is an int.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False

    try:
        return math.isfinite(value)
    except OverflowError:
        # JSON may hold an integer of hundreds of digits, which no float can hold and no table can show.
        return False
