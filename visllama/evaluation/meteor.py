"""METEOR of captions: its Java program aligns words; the score follows from the counts that it prints.

Reference:
    Denkowski and Lavie 2014, "Meteor Universal", for English: `-l en -norm`, task `rank`, as pycocoevalcap calls it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pycocoevalcap.meteor import meteor

from visllama.evaluation.java import run_java

_ALPHA = 0.85
_BETA = 0.2
_GAMMA = 0.6
_DELTA = 0.75
_STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
"""The weights of an exact match, and of a match by stem, by synonym and by paraphrase."""
NUM_COUNTS = 23


def meteor_counts(references: Mapping[str, Sequence[str]], captions: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Return what METEOR counts in each image, shape `(images 23)`, in the order of `references`.

    Args:
        references: The tokenised references of each image, by its id.
        captions: A list of its one tokenised caption, by the same ids.
    """
    lines = [" ||| ".join(("SCORE", *references[key], captions[key][0])) for key in references]
    program = Path(meteor.__file__).parent
    arguments = ["-jar", meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    printed = run_java(program, "2g", arguments, lines)
    if len(printed) != len(lines):
        raise RuntimeError(f"METEOR gave {len(printed)} lines for {len(lines)} captions")
    counts = np.array([line.split() for line in printed], dtype=float).reshape(len(lines), NUM_COUNTS)
    return _without_perfect_chunks(counts)


def _without_perfect_chunks(counts: np.ndarray) -> np.ndarray:
    """Count no chunk in a caption that is a reference word by word: METEOR takes nothing off for it."""
    test_length, reference_length = counts[:, 0], counts[:, 1]
    chunks, test_matches, reference_matches = counts[:, 20], counts[:, 21], counts[:, 22]
    is_perfect = (test_matches == test_length) & (reference_matches == reference_length) & (chunks == 1)
    changed = counts.copy()
    changed[is_perfect, 20] = 0
    return changed


def meteor_of_counts(counts: np.ndarray) -> np.ndarray:
    """Return METEOR of summed counts `(... 23)`, each of an image or of a whole corpus, in [0, 1]."""
    test_length, reference_length, test_function, reference_function = np.moveaxis(counts[..., :4], -1, 0)
    stages = counts[..., 4:20].reshape(*counts.shape[:-1], 4, 4)
    test_content, reference_content, test_function_matches, reference_function_matches = np.moveaxis(stages, -1, 0)
    chunks, test_matches, reference_matches = np.moveaxis(counts[..., 20:], -1, 0)

    precision = _ratio(
        _weighted_matches(test_content, test_function_matches), _weighted_length(test_length, test_function)
    )
    recall = _ratio(
        _weighted_matches(reference_content, reference_function_matches),
        _weighted_length(reference_length, reference_function),
    )
    mean = _ratio(precision * recall, (1 - _ALPHA) * recall + _ALPHA * precision)
    fragmentation = _ratio(chunks, (test_matches + reference_matches) / 2)
    return mean * (1 - _GAMMA * fragmentation**_BETA)


def _weighted_matches(content: np.ndarray, function: np.ndarray) -> np.ndarray:
    """Return the matches of all stages; a function word ("the") counts less than a word of content."""
    return ((_DELTA * content + (1 - _DELTA) * function) * _STAGE_WEIGHTS).sum(-1)


def _weighted_length(length: np.ndarray, function: np.ndarray) -> np.ndarray:
    return _DELTA * (length - function) + (1 - _DELTA) * function


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return `part / whole`, and 0 where nothing was counted."""
    return np.divide(part, whole, out=np.zeros_like(whole, dtype=float), where=whole != 0)
