"""BLEU of summed counts is pycocoevalcap's BLEU, of a corpus and of each image."""

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu

from tests.support.said_captions import make_corpus
from visllama.evaluation.bleu import bleu_counts, bleu_of_counts


@pytest.fixture(scope="module")
def corpus():
    return make_corpus(200)


def test_bleu_is_pycocoevalcaps(corpus):
    references, captions = corpus
    counts = bleu_counts(references, captions)
    theirs, per_image = Bleu(4).compute_score(references, captions, verbose=0)
    for n in range(4):
        assert float(bleu_of_counts(counts.sum(0), n + 1)) == pytest.approx(theirs[n], abs=1e-12)
        assert np.allclose(bleu_of_counts(counts, n + 1), per_image[n], rtol=0, atol=1e-12)


def test_a_short_caption_pays_for_it():
    references = {"a": ["a b c d e f g h"]}
    counts = bleu_counts(references, {"a": ["a b c d"]})
    assert float(bleu_of_counts(counts.sum(0), 1)) == pytest.approx(np.exp(1 - 8 / 4), rel=1e-6)


def test_an_empty_caption_scores_nothing():
    counts = bleu_counts({"a": ["a b"]}, {"a": [""]})
    assert float(bleu_of_counts(counts.sum(0), 4)) < 1e-6
