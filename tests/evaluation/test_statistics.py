import numpy as np

from visllama.evaluation.captions import CaptionScores
from visllama.evaluation.statistics import bootstrap_interval, clustered_interval, intervals, vqa_intervals
from visllama.evaluation.vqa import VqaScores


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


def test_groups_of_one_are_the_plain_bootstrap():
    values = np.random.default_rng(1).normal(3, 1, 100)
    names = [f"{i:03d}" for i in range(100)]
    assert np.allclose(clustered_interval(values, names), bootstrap_interval(values), rtol=1e-12)


def test_questions_on_one_image_are_drawn_together():
    """Nine equal values on each of 50 images say no more than one: the interval is three times that of 450."""
    per_image = np.random.default_rng(0).normal(0, 1, 50)
    values, images = np.repeat(per_image, 9), np.repeat(np.arange(50), 9)
    alone, low_high = bootstrap_interval(per_image), clustered_interval(values, images)
    assert np.allclose(low_high, alone, rtol=1e-12)
    assert 2.5 < np.diff(low_high)[0] / np.diff(bootstrap_interval(values))[0] < 3.5
    order = np.random.default_rng(1).permutation(450)
    assert np.allclose(clustered_interval(values[order], images[order]), low_high, rtol=1e-12)


def test_a_question_counts_as_one_however_many_its_image_has():
    """50 images with 9 right answers and 50 with one wrong: the mean is 0.9, not the images' mean of 0.5."""
    low, high = clustered_interval(np.repeat([1.0, 0.0], [450, 50]), [*np.repeat(np.arange(50), 9), *range(50, 100)])
    assert 0.8 < low < 0.9 < high < 0.95


def test_coverage_with_unequal_groups():
    """Of 200 samples with 60 images of 1 to 9 questions, 95% of the intervals hold the true mean, give or take 4.6%."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        counts = rng.integers(1, 10, 60)
        values = np.repeat(rng.normal(0, 1, 60), counts) + rng.normal(0, 0.5, counts.sum())
        low, high = clustered_interval(values, np.repeat(np.arange(60), counts), 500)
        hits += low <= 0 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_accuracy_gets_an_interval_by_image_and_one_image_gets_none():
    scores = VqaScores(
        {"accuracy": 50.0, "accuracy_normalise_all": 75.0}, {}, {}, np.array([1.0, 0.0]), ["1", "2"], ["a", "b"]
    )
    assert vqa_intervals(scores) == {"accuracy": [0.0, 100.0]}
    assert vqa_intervals(scores._replace(groups=["a", "a"])) == {}
