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
"""The number of columns of `meteor_counts`, as the Java program prints them: four lengths; four counts of matches for
each way of matching (exact, stem, synonym, paraphrase); the number of chunks, which are runs of matched words in the
same order; and the number of matched words in the caption and in the reference."""


def meteor_counts(references: Mapping[str, Sequence[str]], captions: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Run METEOR's Java program, and return what it counts in each image, shape `(images 23)`.

    The rows are in the order of `references`; `NUM_COUNTS` describes the columns.

    Args:
        references: The references of each image by the image's id, as `tokenise` returns them.
        captions: The caption of each image as a list of one text, by the same ids, as `tokenise` returns them.

    Raises:
        RuntimeError: If the Java program fails, or prints more or fewer lines than it was sent.
    """
    lines = []
    for key, texts in references.items():
        fields = ["SCORE", *texts, captions[key][0]]
        lines.append(" ||| ".join(fields))

    folder = Path(meteor.__file__).parent
    # The program speaks in lines: SCORE with references and a caption in, the counts of that caption out.
    arguments = ["-jar", meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    printed = run_java(folder, "2g", arguments, lines)
    if len(printed) != len(lines):
        raise RuntimeError(f"METEOR gave {len(printed)} lines for {len(lines)} captions")

    rows = [line.split() for line in printed]
    counts = np.array(rows, dtype=float).reshape(len(lines), NUM_COUNTS)
    return _without_perfect_chunks(counts)


def _without_perfect_chunks(counts: np.ndarray) -> np.ndarray:
    """Return a copy of counts with 0 chunks, and so no penalty, where a caption equals a reference word by word."""
    test_length = counts[:, 0]
    reference_length = counts[:, 1]
    chunks = counts[:, 20]
    test_matches = counts[:, 21]
    reference_matches = counts[:, 22]

    is_whole_caption = test_matches == test_length
    is_whole_reference = reference_matches == reference_length
    is_perfect = is_whole_caption & is_whole_reference & (chunks == 1)

    changed = counts.copy()
    changed[is_perfect, 20] = 0
    return changed


def meteor_of_counts(counts: np.ndarray) -> np.ndarray:
    """Compute METEOR from summed counts, and return it in [0, 1], shape `(...)`.

    Args:
        counts: Sums of the rows that `meteor_counts` returns, shape `(... 23)`: those of one image or of a whole
            corpus.
    """
    test_length, reference_length, test_function, reference_function = np.moveaxis(counts[..., :4], -1, 0)
    # The 16 numbers in the middle are four kinds of matches in each of the four stages of `_STAGE_WEIGHTS`.
    stages = counts[..., 4:20].reshape(*counts.shape[:-1], 4, 4)
    test_content, reference_content, test_function_matches, reference_function_matches = np.moveaxis(stages, -1, 0)
    chunks, test_matches, reference_matches = np.moveaxis(counts[..., 20:], -1, 0)

    weighted_test_matches = _weighted_matches(test_content, test_function_matches)
    weighted_test_length = _weighted_length(test_length, test_function)
    precision = _ratio(weighted_test_matches, weighted_test_length)

    weighted_reference_matches = _weighted_matches(reference_content, reference_function_matches)
    weighted_reference_length = _weighted_length(reference_length, reference_function)
    recall = _ratio(weighted_reference_matches, weighted_reference_length)

    mean = _ratio(precision * recall, (1 - _ALPHA) * recall + _ALPHA * precision)
    # The fewer chunks the matched words lie in, the more alike their order is.
    fragmentation = _ratio(chunks, (test_matches + reference_matches) / 2)
    penalty = _GAMMA * fragmentation**_BETA
    return mean * (1 - penalty)


def _weighted_matches(content: np.ndarray, function: np.ndarray) -> np.ndarray:
    """Return the matches of all stages; a function word ("the") counts less than a word of content."""
    of_stages = _DELTA * content + (1 - _DELTA) * function
    return (of_stages * _STAGE_WEIGHTS).sum(-1)


def _weighted_length(length: np.ndarray, function: np.ndarray) -> np.ndarray:
    """Return the number of words, in which a function word counts less than a word of content."""
    return _DELTA * (length - function) + (1 - _DELTA) * function


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return `part / whole`, and 0 where nothing was counted."""
    return np.divide(part, whole, out=np.zeros_like(whole, dtype=float), where=whole != 0)
