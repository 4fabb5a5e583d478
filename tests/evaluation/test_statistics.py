"""Intervals and paired tests: what they cover, and what they find that separate intervals cannot."""

import numpy as np
import pytest

from visllama.evaluation.bleu import bleu_of_counts
from visllama.evaluation.captions import bleu_metrics
from visllama.evaluation.statistics import (
    CorpusMetric,
    bootstrap_intervals,
    grouped_metric,
    mean_metric,
    paired_difference,
)


def interval(values: np.ndarray, num_resamples: int = 2000) -> list[float]:
    return bootstrap_intervals({"it": mean_metric(values)}, num_resamples)["it"]


def grouped_interval(values: np.ndarray, groups, num_resamples: int = 2000) -> list[float]:
    return bootstrap_intervals({"it": grouped_metric(np.asarray(values), groups)}, num_resamples)["it"]


def test_interval_of_a_known_spread():
    """The mean of 400 unit normals: 1.96 / 20 on either side, within the bootstrap's own noise."""
    low, high = interval(np.random.default_rng(1).normal(3, 1, 400))
    assert 0.17 < high - low < 0.22 and low < 3.0 < high


def test_no_spread_no_interval():
    assert interval(np.full(9, 0.5)) == [0.5, 0.5]


def test_coverage():
    """95% intervals hold the true mean in 95% of 200 samples, give or take three standard errors (4.6%)."""
    rng = np.random.default_rng(0)
    hits = [low <= 0 <= high for low, high in (interval(rng.normal(0, 1, 200), 500) for _ in range(200))]
    assert 0.90 <= np.mean(hits) <= 0.99


def test_metrics_together_get_the_intervals_that_each_gets_alone():
    """All metrics are drawn at the same images, so one more metric changes none."""
    rng = np.random.default_rng(3)
    one, two = mean_metric(rng.normal(0, 1, 50)), mean_metric(rng.normal(5, 1, 50))
    together = bootstrap_intervals({"one": one, "two": two})
    assert np.allclose(together["one"], bootstrap_intervals({"one": one})["one"], rtol=1e-12)
    assert np.allclose(together["two"], bootstrap_intervals({"two": two})["two"], rtol=1e-12)


def test_a_corpus_metric_is_resampled_as_one():
    """BLEU-4 of a corpus is no mean over images: its interval is that of drawing images and counting anew."""
    rng = np.random.default_rng(0)
    counts = np.stack(
        [rng.integers(0, 9 - n, 60) for n in range(4)]
        + [np.full(60, 9 - n) for n in range(4)]
        + [np.full(60, 9), np.full(60, 10)],
        axis=1,
    )
    counts = counts.astype(float)
    draws = np.random.default_rng(0)
    by_hand = []
    for _ in range(2000):
        drawn = draws.integers(0, 60, 60)
        by_hand.append(bleu_of_counts(counts[drawn].sum(0), 4))
    expected = np.quantile(by_hand, [0.025, 0.975])
    found = bootstrap_intervals({"BLEU-4": bleu_metrics(counts)["BLEU-4"]})["BLEU-4"]
    assert np.allclose(found, expected, rtol=1e-9)  # sums in another order


def test_groups_of_one_are_the_plain_bootstrap():
    values = np.random.default_rng(1).normal(3, 1, 100)
    names = [f"{i:03d}" for i in range(100)]
    assert np.allclose(grouped_interval(values, names), interval(values), rtol=1e-12)


def test_questions_on_one_image_are_drawn_together():
    """Nine equal values on each of 50 images say no more than one: the interval is three times that of 450."""
    per_image = np.random.default_rng(0).normal(0, 1, 50)
    values, images = np.repeat(per_image, 9), np.repeat(np.arange(50), 9)
    alone, low_high = interval(per_image), grouped_interval(values, images)
    assert np.allclose(low_high, alone, rtol=1e-9)
    assert 2.5 < np.diff(low_high)[0] / np.diff(interval(values))[0] < 3.5
    order = np.random.default_rng(1).permutation(450)
    assert np.allclose(grouped_interval(values[order], images[order]), low_high, rtol=1e-9)


def test_a_question_counts_as_one_however_many_its_image_has():
    """50 images with 9 right answers and 50 with one wrong: the mean is 0.9, not the images' mean of 0.5."""
    values, images = np.repeat([1.0, 0.0], [450, 50]), [*np.repeat(np.arange(50), 9), *range(50, 100)]
    low, high = grouped_interval(values, images)
    assert grouped_metric(values, images).value == 0.9
    assert 0.8 < low < 0.9 < high < 0.95


def test_coverage_with_unequal_groups():
    """Of 200 samples with 60 images of 1 to 9 questions, 95% of the intervals hold the true mean, give or take 4.6%."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        counts = rng.integers(1, 10, 60)
        values = np.repeat(rng.normal(0, 1, 60), counts) + rng.normal(0, 0.5, counts.sum())
        low, high = grouped_interval(values, np.repeat(np.arange(60), counts), 500)
        hits += low <= 0 <= high
    assert 0.90 <= hits / 200 <= 0.99


# ------------------------------------------------------------------------------------------------------- two systems


def test_a_system_beside_itself_does_not_differ():
    metric = mean_metric(np.random.default_rng(0).normal(1, 1, 300))
    assert paired_difference(metric, metric) == (0.0, [0.0, 0.0], 1.0)


def test_the_sign_says_which_is_better():
    rng = np.random.default_rng(0)
    worse = rng.normal(1, 1, 200)
    difference = paired_difference(mean_metric(worse), mean_metric(worse + 0.1))
    assert difference.value == pytest.approx(0.1) and difference.interval == pytest.approx([0.1, 0.1])
    assert difference.p < 0.001
    assert paired_difference(mean_metric(worse + 0.1), mean_metric(worse)).value == pytest.approx(-0.1)


def test_only_a_paired_test_sees_a_small_loss():
    """1% off a metric that spreads widely over images: each interval holds the other's mean, and yet p is small."""
    rng = np.random.default_rng(2)
    whole = rng.gamma(2, 0.5, 1000)
    cut = whole.copy()
    cut[rng.permutation(1000)[:100]] *= 0.9
    one, two = bootstrap_intervals({"a": mean_metric(whole), "b": mean_metric(cut)}).values()
    assert one[0] < cut.mean() and two[1] > whole.mean()
    difference = paired_difference(mean_metric(whole), mean_metric(cut))
    assert difference.p < 0.01 and difference.interval[1] < 0


def test_false_positives():
    """Of 300 pairs of equally good systems 5% have p < 0.05, give or take three standard errors (3.8%)."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        hard = rng.normal(0, 1, 100)
        first, second = (mean_metric(hard + rng.normal(0, 0.5, 100)) for _ in range(2))
        hits += paired_difference(first, second, 400).p < 0.05
    assert 0.012 <= hits / 300 <= 0.088


def test_a_corpus_metric_is_compared_as_one():
    """One system has matched half of the n-grams that the other has: BLEU-4 falls, and chance does not explain it."""
    rng = np.random.default_rng(0)
    written = np.tile([9.0, 8, 7, 6], (80, 1))
    matched = np.stack([rng.integers(2, 9 - n, 80) for n in range(4)], axis=1)
    lengths = np.full((80, 2), 9.0)
    better = bleu_metrics(np.concatenate([matched, written, lengths], axis=1))["BLEU-4"]
    worse = bleu_metrics(np.concatenate([matched / 2, written, lengths], axis=1))["BLEU-4"]
    difference = paired_difference(better, worse)
    assert difference.value == pytest.approx(worse.value - better.value) and difference.p < 0.001
    assert difference.interval[1] < 0


def test_other_images_are_refused():
    with pytest.raises(ValueError, match="3 and 4 images"):
        paired_difference(mean_metric(np.zeros(3)), CorpusMetric(np.zeros((4, 2)), lambda sums: sums[..., 0]))
