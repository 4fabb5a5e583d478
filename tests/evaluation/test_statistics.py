import numpy as np

from visllama.evaluation.captions import CaptionScores
from visllama.evaluation.statistics import bootstrap_interval, intervals


def test_interval_of_a_known_spread():
    """Of the mean of 400 unit normals: 1.96 / 20 on either side, within the bootstrap's own noise."""
    low, high = bootstrap_interval(np.random.default_rng(1).normal(3, 1, 400))
    assert 0.17 < high - low < 0.22 and low < 3.0 < high


def test_no_spread_no_interval():
    assert bootstrap_interval(np.full(9, 0.5)) == [0.5, 0.5]


def test_coverage():
    """95% intervals hold the true mean in 95% of 200 samples, give or take three standard errors (4.6%)."""
    rng = np.random.default_rng(0)
    hits = [low <= 0 <= high for low, high in (bootstrap_interval(rng.normal(0, 1, 200), 500) for _ in range(200))]
    assert 0.90 <= np.mean(hits) <= 0.99


def test_corpus_metrics_get_none():
    values = np.arange(4.0)
    found = intervals(
        CaptionScores(
            {"BLEU-4": 0.3, "METEOR": 0.2, "CIDEr": 1.5},
            {"BLEU-4": values, "METEOR": values, "CIDEr": values},
            list("abcd"),
        )
    )
    assert list(found) == ["CIDEr"]
