"""BLEU of captions: pycocoevalcap counts n-grams; the score follows from the sums of its counts.

Reference:
    Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from pycocoevalcap.bleu.bleu_scorer import BleuScorer

MOST_WORDS = 4
"""The number of words of the longest n-gram that is counted."""
NUM_COUNTS = 2 * MOST_WORDS + 2
"""The number of columns of `bleu_counts`: matched and written n-grams of each length, and two lengths in words."""
# pycocoevalcap adds the first number above and the second one below each ratio, so that nothing is divided by zero.
_TINY = 1e-15
_SMALL = 1e-9


def bleu_counts(
    references: Mapping[str, Sequence[str]], captions: Mapping[str, Sequence[str]]
) -> Float[np.ndarray, "images 10"]:
    """Count what BLEU is computed from, and return a row of ten counts for each image, in the order of `references`.

    The ten columns are: the number of n-grams of the caption that a reference has too, for n from 1 to 4; the number
    of all n-grams of the caption, for n from 1 to 4; the number of words of the caption; and the number of words of the
    reference whose length is closest to the caption's.

    Args:
        references: The references of each image by the image's id, as `tokenise` returns them.
        captions: The caption of each image as a list of one text, by the same ids, as `tokenise` returns them.

    Raises:
        KeyError: If an image has no caption.
    """
    rows: list[list[float]] = []
    for key, texts in references.items():
        scorer = BleuScorer(captions[key][0], list(texts), MOST_WORDS)
        ngram_counts = scorer.ctest[0]
        length = ngram_counts["testlen"]

        # Of two references that are equally close the shorter one counts, as in pycocoevalcap.
        distances = [(abs(other - length), other) for other in ngram_counts["reflen"]]
        _, closest = min(distances)
        rows.append([*ngram_counts["correct"], *ngram_counts["guess"], length, closest])

    # The shape is given because an empty list has no columns.
    return np.array(rows, dtype=float).reshape(len(rows), NUM_COUNTS)


def bleu_of_counts(counts: np.ndarray, num_words: int) -> np.ndarray:
    """Compute BLEU from summed counts, and return it in [0, 1], shape `(...)`.

    Args:
        counts: Sums of the rows that `bleu_counts` returns, shape `(... 10)`: those of one image or of a whole corpus.
        num_words: The number of words of the longest n-gram that counts, from 1 to 4: 4 for BLEU-4.
    """
    matched = counts[..., :num_words]
    written = counts[..., MOST_WORDS : MOST_WORDS + num_words]
    precisions = (matched + _TINY) / (written + _SMALL)

    # The two last columns are the lengths of the captions and of the closest references. Only a caption that is
    # shorter than its reference is penalised: the exponent of a longer one is cut off at 0.
    caption_length = counts[..., -2] + _TINY
    reference_length = counts[..., -1] + _SMALL
    ratio = caption_length / reference_length
    brevity_penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))

    geometric_mean = precisions.prod(-1) ** (1 / num_words)
    return geometric_mean * brevity_penalty
