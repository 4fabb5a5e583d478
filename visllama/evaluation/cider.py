"""CIDEr-D of captions, by pycocoevalcap: n-grams weigh less the more images have them in their references.

The weights come from the images that are judged, so the CIDEr of a part of a data set is not that of the whole.
Document frequencies of another set of references make scores of different parts comparable.

Reference:
    Vedantam et al. 2015, arXiv:1411.5726.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pycocoevalcap.cider.cider_scorer import CiderScorer


class DocumentFrequencies:
    """In how many images' references each n-gram comes.

    Args:
        references: The tokenised references of each image, by its id.
    """

    def __init__(self, references: Mapping[str, Sequence[str]]) -> None:
        counter = CiderScorer()
        for texts in references.values():
            counter += (None, list(texts))
        counter.compute_doc_freq()
        self.counts = counter.document_frequency
        self.num_images = len(references)


class _ScorerOfOtherImages(CiderScorer):
    """pycocoevalcap's scorer, whose document frequencies are given.

    Args:
        frequencies: The document frequencies.
    """

    def __init__(self, frequencies: DocumentFrequencies) -> None:
        self._log_num_images = np.log(float(frequencies.num_images))
        super().__init__()
        self.document_frequency = frequencies.counts.copy()

    @property
    def ref_len(self) -> float:
        """The logarithm of the number of images that the frequencies were counted in."""
        return self._log_num_images

    @ref_len.setter
    def ref_len(self, _: float) -> None:
        """Ignore the number of the images that are judged, which pycocoevalcap sets."""


def cider_scores(
    references: Mapping[str, Sequence[str]],
    captions: Mapping[str, Sequence[str]],
    frequencies: DocumentFrequencies | None = None,
) -> np.ndarray:
    """Return the CIDEr-D of each image on pycocoevalcap's scale, in the order of `references`.

    Args:
        references: The tokenised references of each image, by its id.
        captions: A list of its one tokenised caption, by the same ids.
        frequencies: The document frequencies; None counts those of `references`.
    """
    scorer = _ScorerOfOtherImages(frequencies or DocumentFrequencies(references))
    for key, texts in references.items():
        scorer += (captions[key][0], list(texts))
    return np.array(scorer.compute_cider(), dtype=float)
