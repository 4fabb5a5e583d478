"""CIDEr-D is pycocoevalcap's; document frequencies of other references make parts of a data set comparable."""

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider

from tests.support.said_captions import make_corpus
from visllama.evaluation.cider import ReferenceNgrams, cider_scores


@pytest.fixture(scope="module")
def corpus():
    return make_corpus(200)


def score(corpus, frequencies_of=None) -> np.ndarray:
    references, captions = corpus
    others = None if frequencies_of is None else ReferenceNgrams(frequencies_of)
    return cider_scores(ReferenceNgrams(references), [captions[key][0] for key in references], others)


def test_cider_is_pycocoevalcaps(corpus):
    whole, per_image = Cider().compute_score(*corpus)
    found = score(corpus)
    assert np.allclose(found, per_image, rtol=0, atol=1e-12) and found.mean() == pytest.approx(whole, abs=1e-12)


def part_of(corpus, count):
    references, captions = corpus
    keys = list(references)[:count]
    return {key: references[key] for key in keys}, {key: captions[key] for key in keys}


def test_a_part_alone_scores_otherwise_and_with_all_frequencies_as_in_the_whole(corpus):
    whole = score(corpus)[:20]
    part = part_of(corpus, 20)
    assert abs(score(part).mean() - whole.mean()) > 0.01 * whole.mean()
    assert np.allclose(score(part, corpus[0]), whole, rtol=0, atol=1e-12)


def test_scoring_changes_nothing_for_the_next_captions(corpus):
    """The references are counted once: captions with words of no reference leave no trace in them."""
    references, captions = corpus
    ngrams = ReferenceNgrams(references)
    own = [captions[key][0] for key in references]
    before = cider_scores(ngrams, own)
    cider_scores(ngrams, ["unknown words here"] * len(own))
    assert np.array_equal(cider_scores(ngrams, own), before)


def test_a_caption_for_each_image(corpus):
    with pytest.raises(ValueError, match="1 captions for 200 images"):
        cider_scores(ReferenceNgrams(corpus[0]), ["a"])
