"""`metrics.json` as it is read again: data that somebody else may have written, of which nothing is taken on trust."""

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
    """Return what a run's `metrics.json` holds.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no regular file, is too large, or is no JSON object.
    """
    try:
        content = json.loads(read_regular(folder / METRICS_FILE, _MOST_BYTES))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def judged(metrics: Mapping) -> dict[str, dict]:
    """Return the evaluations that have a score, by name; a name that is no plain file name is none."""
    found = mapping(metrics, "evaluations").items()
    return {name: one for name, one in found if _NAME.fullmatch(name) and numbers(mapping(one, "metrics"))}


def mapping(node: object, *keys: str) -> dict[str, Any]:
    """Return what lies at keys inside mappings; an empty one where that is nothing, or no mapping."""
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node if isinstance(node, dict) else {}


def numbers(node: Mapping) -> dict[str, float]:
    """Return what of a mapping is a finite number."""
    return {str(key): value for key, value in node.items() if is_number(value)}


def is_number(value: object) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
