"""CIDEr-D is pycocoevalcap's; document frequencies of other references make parts of a data set comparable."""

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider

from tests.support.said_captions import make_corpus
from visllama.evaluation.cider import DocumentFrequencies, cider_scores


@pytest.fixture(scope="module")
def corpus():
    return make_corpus(200)


def test_cider_is_pycocoevalcaps(corpus):
    references, captions = corpus
    score, per_image = Cider().compute_score(references, captions)
    found = cider_scores(references, captions)
    assert np.allclose(found, per_image, rtol=0, atol=1e-12) and found.mean() == pytest.approx(score, abs=1e-12)


def part_of(corpus, count):
    references, captions = corpus
    keys = list(references)[:count]
    return {key: references[key] for key in keys}, {key: captions[key] for key in keys}


def test_a_part_alone_scores_otherwise_and_with_all_frequencies_as_in_the_whole(corpus):
    whole = cider_scores(*corpus)[:20]
    part = part_of(corpus, 20)
    assert abs(cider_scores(*part).mean() - whole.mean()) > 0.01 * whole.mean()
    assert np.allclose(cider_scores(*part, DocumentFrequencies(corpus[0])), whole, rtol=0, atol=1e-12)
