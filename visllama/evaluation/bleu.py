"""BLEU of captions: pycocoevalcap counts n-grams; the score follows from the sums of its counts.

Reference:
    Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer

MOST_WORDS = 4
"""The longest n-gram that is counted."""
NUM_COUNTS = 2 * MOST_WORDS + 2
_TINY = 1e-15
_SMALL = 1e-9
"""What pycocoevalcap adds above and below a ratio, so that nothing is divided by zero."""


def bleu_counts(references: Mapping[str, Sequence[str]], captions: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Return what BLEU counts in each image, shape `(images 10)`, in the order of `references`.

    A row holds the n-grams of the caption that a reference has, for n from 1 to 4; all its n-grams likewise; its number
    of words; and that of the reference whose length is closest.

    Args:
        references: The tokenised references of each image, by its id.
        captions: A list of its one tokenised caption, by the same ids.
    """
    rows = []
    for key, texts in references.items():
        scorer = BleuScorer(captions[key][0], list(texts), MOST_WORDS)
        counted = scorer.ctest[0]
        length = counted["testlen"]
        closest = min((abs(other - length), other) for other in counted["reflen"])[1]
        rows.append([*counted["correct"], *counted["guess"], length, closest])
    return np.array(rows, dtype=float).reshape(len(rows), NUM_COUNTS)


def bleu_of_counts(counts: np.ndarray, num_words: int) -> np.ndarray:
    """Return BLEU of summed counts `(... 10)`, each of an image or of a whole corpus, in [0, 1].

    Args:
        counts: Sums of what `bleu_counts` returns.
        num_words: The longest n-gram: 4 for BLEU-4.
    """
    matched = counts[..., :num_words]
    written = counts[..., MOST_WORDS : MOST_WORDS + num_words]
    precisions = (matched + _TINY) / (written + _SMALL)
    ratio = (counts[..., -2] + _TINY) / (counts[..., -1] + _SMALL)
    brevity_penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return precisions.prod(-1) ** (1 / num_words) * brevity_penalty
