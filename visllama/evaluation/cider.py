"""CIDEr-D of captions, by pycocoevalcap: an n-gram weighs less the more images have it in their references.

The weights come from the images that are judged, so the CIDEr of a part of a data set is not comparable to the CIDEr
of the whole. Document frequencies of another set of references make the scores of different parts comparable.

Reference:
    Vedantam et al. 2015, arXiv:1411.5726.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_test


class ReferenceNgrams:
    """The n-grams (runs of 1 to 4 words) of references, counted once to score any number of sets of captions.

    Args:
        references: The references of each image by the image's id, as `tokenise` returns them.

    Attributes:
        of_images: For each image a list with an entry for each reference: how often the reference has each n-gram.
        frequencies: The number of images whose references have an n-gram, by the n-gram, a tuple of words.
    """

    def __init__(self, references: Mapping[str, Sequence[str]]) -> None:
        counter = CiderScorer()
        for texts in references.values():
            counter.cook_append(None, list(texts))
        counter.compute_doc_freq()

        self.of_images = counter.crefs
        self.frequencies = counter.document_frequency


class _ScorerWithFrequencies(CiderScorer):
    """pycocoevalcap's scorer with document frequencies that were counted before.

    Args:
        frequencies_of: The references in which the document frequencies were counted.
    """

    def __init__(self, frequencies_of: ReferenceNgrams) -> None:
        # Set before pycocoevalcap's own constructor, which assigns `ref_len`.
        num_images = float(len(frequencies_of.of_images))
        self._log_num_images = np.log(num_images)
        super().__init__()

        # A copy, because the scorer adds every n-gram that it looks up.
        self.document_frequency = frequencies_of.frequencies.copy()

    @property
    def ref_len(self) -> float:  # pyrefly: ignore[bad-override-mutable-attribute]  compute_cider assigns the judged number
        """The logarithm of the number of images that the frequencies were counted in."""
        return self._log_num_images

    @ref_len.setter
    def ref_len(self, _: float) -> None:
        """Ignore the assigned number of judged images: `compute_cider` would replace the number of counted ones."""


def cider_scores(
    references: ReferenceNgrams,
    captions: Iterable[str],
    frequencies_of: ReferenceNgrams | None = None,
) -> Float[np.ndarray, " images"]:
    """Compute the CIDEr-D of each image's caption, on pycocoevalcap's scale: 1 is printed as 100, and 10 is the most.

    Args:
        references: The n-grams of the images' references.
        captions: The caption of each image, as `tokenise` returns it, in the order of the references.
        frequencies_of: The n-grams of other references, in whose images it is counted how rare an n-gram is; None
            counts it in `references`.

    Raises:
        ValueError: If there are more or fewer captions than images.
    """
    scorer = _ScorerWithFrequencies(frequencies_of or references)
    scorer.crefs = references.of_images
    scorer.ctest = [cook_test(caption) for caption in captions]

    # pycocoevalcap would silently score the images that both lists have.
    if len(scorer.ctest) != len(scorer.crefs):
        raise ValueError(f"{len(scorer.ctest)} captions for {len(scorer.crefs)} images")
    return np.array(scorer.compute_cider(), dtype=float)
