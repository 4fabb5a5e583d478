"""CIDEr-D of captions, by pycocoevalcap: n-grams weigh less the more images have them in their references.

The weights come from the images that are judged, so the CIDEr of a part of a data set is not that of the whole.
Document frequencies of another set of references make scores of different parts comparable.

Reference:
    Vedantam et al. 2015, arXiv:1411.5726.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_test


class ReferenceNgrams:
    """The n-grams of references, counted once however many captionings are scored against them.

    Args:
        references: The tokenised references of each image, by its id.

    Attributes:
        of_images: The n-grams of each reference of each image.
        frequencies: In how many images' references each n-gram comes.
    """

    def __init__(self, references: Mapping[str, Sequence[str]]) -> None:
        counter = CiderScorer()
        for texts in references.values():
            counter += (None, list(texts))
        counter.compute_doc_freq()
        self.of_images = counter.crefs
        self.frequencies = counter.document_frequency


class _ScorerWithFrequencies(CiderScorer):
    """pycocoevalcap's scorer, whose document frequencies are given.

    Args:
        frequencies_of: The references that they are counted in.
    """

    def __init__(self, frequencies_of: ReferenceNgrams) -> None:
        self._log_num_images = np.log(float(len(frequencies_of.of_images)))
        super().__init__()
        self.document_frequency = frequencies_of.frequencies.copy()  # the scorer adds the n-grams that it looks up

    @property
    def ref_len(self) -> float:
        """The logarithm of the number of images that the frequencies were counted in."""
        return self._log_num_images

    @ref_len.setter
    def ref_len(self, _: float) -> None:
        """Ignore the number of the images that are judged, which pycocoevalcap sets."""


def cider_scores(
    references: ReferenceNgrams, captions: Iterable[str], frequencies_of: ReferenceNgrams | None = None
) -> np.ndarray:
    """Return the CIDEr-D of each image on pycocoevalcap's scale.

    Args:
        references: The references of the images.
        captions: The tokenised caption of each image, in the order of the references.
        frequencies_of: The references that the document frequencies are counted in; None is `references`.
    """
    scorer = _ScorerWithFrequencies(frequencies_of or references)
    scorer.crefs = references.of_images
    scorer.ctest = [cook_test(caption) for caption in captions]
    if len(scorer.ctest) != len(scorer.crefs):
        raise ValueError(f"{len(scorer.ctest)} captions for {len(scorer.crefs)} images")
    return np.array(scorer.compute_cider(), dtype=float)
