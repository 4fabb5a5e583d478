"""Compute confidence intervals of scores, and test the difference between two systems.

Every metric of this package is a function of sums over images (`CorpusMetric`): a mean of scores, BLEU of counted
n-grams, METEOR of counted matches, VQA accuracy over the questions of each image. An interval comes from the bootstrap:
images are drawn again with replacement many times, and the metric is computed anew from the sums of each draw. That
costs one matrix product for all metrics. A metric of a corpus is never treated as a mean of scores of single images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

NUM_RESAMPLES = 2000
"""How often images are drawn again for an interval or a test."""
_LEVEL = 0.95
_BLOCK = 100
"""The number of resamples that are in memory at once: with 40,000 images they take 32 MB, all of them gigabytes."""


class CorpusMetric(NamedTuple):
    """A metric over images, held so that it can be computed of any selection of the images.

    Attributes:
        terms: A row of numbers for each image, which are summed over images. For a mean of scores a row holds the
            image's score and 1.
        combine: A function that computes the metric, shape `(...)`, from such sums, shape `(... terms)`. For a mean it
            divides the first sum by the second.
    """

    terms: Float[np.ndarray, "images terms"]
    combine: Callable[[np.ndarray], np.ndarray]

    @property
    def value(self) -> float:
        """The metric over all images together, as one number."""
        sums = self.terms.sum(0)
        return float(self.combine(sums))

    @property
    def per_image(self) -> Float[np.ndarray, " images"]:
        """The metric of each image alone, in the order of `terms`."""
        return self.combine(self.terms)


def mean_metric(values: Sequence[float] | np.ndarray, counts: Sequence[int] | np.ndarray | None = None) -> CorpusMetric:
    """Return the metric that is the mean over all scores: the sum of `values` divided by the sum of `counts`.

    Args:
        values: The score of each image, or the sum of an image's scores where it has several; shape `(images,)`.
        counts: The number of scores of each image, shape `(images,)`; None means that each image has one.
    """
    sums = np.asarray(values, dtype=float)
    num_scores = np.ones_like(sums)
    if counts is not None:
        num_scores = np.asarray(counts, dtype=float)

    terms = np.stack([sums, num_scores], axis=1)
    return CorpusMetric(terms, _mean)


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def grouped_metric(values: Float[np.ndarray, " questions"], groups: Sequence[object]) -> CorpusMetric:
    """Return the mean of the scores of questions as a `CorpusMetric` with a row for each image, not for each question.

    Confidence intervals draw rows, so the questions about an image are drawn together. If they were drawn one by one,
    the interval would be too narrow, because scores of the same image rise and fall together.

    Args:
        values: The score of each question, at least one.
        groups: The id of each question's image, in the order of `values`. The rows of the result are in the sorted
            order of these ids.

    Reference:
        Field and Welsh 2007, "Bootstrapping clustered data".
    """
    _, group = np.unique(np.array(groups), return_inverse=True)
    sums = np.bincount(group, values)
    counts = np.bincount(group)
    return mean_metric(sums, counts)


# -------------------------------------------------------------------------------------------------------- one system


def bootstrap_intervals(
    metrics: Mapping[str, CorpusMetric],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Compute the 95% bootstrap interval of each metric, and return `[low, high]` by the metric's name.

    The ends are the 2.5% and 97.5% quantiles of the metric over draws of the images. The same arguments always give the
    same intervals.

    Args:
        metrics: At least one metric by its name, all with the same images in the same order.
        num_resamples: The number of draws. Each draws as many images as there are, with replacement.
        seed: The seed of the draws.

    Reference:
        Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    values: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    terms, columns = _join_terms(metrics)

    # One matrix product draws all metrics of a block of resamples, so that all of them see the same draws.
    for counts in _draws(len(terms), num_resamples, seed):
        sums = counts @ terms
        for name, metric in metrics.items():
            sums_of_metric = sums[:, columns[name]]
            resampled = metric.combine(sums_of_metric)
            values[name].append(resampled)

    intervals = {}
    for name, blocks in values.items():
        intervals[name] = _interval(np.concatenate(blocks))
    return intervals


def _join_terms(
    metrics: Mapping[str, CorpusMetric],
) -> tuple[Float[np.ndarray, "images terms"], dict[str, slice]]:
    """Return the terms of all metrics as one matrix, and the columns of each metric in it."""
    columns: dict[str, slice] = {}
    start = 0
    for name, metric in metrics.items():
        width = metric.terms.shape[1]
        columns[name] = slice(start, start + width)
        start += width

    terms = np.concatenate([metric.terms for metric in metrics.values()], axis=1)
    return terms, columns


def _draws(num_images: int, num_resamples: int, seed: int) -> Iterator[Float[np.ndarray, "resamples images"]]:
    """Yield blocks of how often each image is drawn in each resample."""
    rng = np.random.default_rng(seed)
    for start in range(0, num_resamples, _BLOCK):
        num_rows = min(_BLOCK, num_resamples - start)
        block = np.empty((num_rows, num_images))

        # Row by row: the draws of a whole block at once would be a second array of its size.
        for row in block:
            images = rng.integers(0, num_images, num_images)
            row[:] = np.bincount(images, minlength=num_images)
        yield block


def _interval(values: Float[np.ndarray, " resamples"]) -> list[float]:
    """Return the middle 95% of resampled values, as `[low, high]`."""
    low_level = (1 - _LEVEL) / 2
    high_level = (1 + _LEVEL) / 2
    low, high = np.quantile(values, [low_level, high_level])
    return [float(low), float(high)]


# ------------------------------------------------------------------------------------------------------- two systems


class Difference(NamedTuple):
    """The difference of a metric between two systems that were judged on the same images.

    Attributes:
        value: The second system's metric minus the first one's.
        interval: The 95% interval of the difference, as `[low, high]`, by the paired bootstrap.
        p: The two-sided p-value of a permutation test: the share of random exchanges of the two systems' results, image
            by image, that give a difference at least as large in either direction. It is never 0.
    """

    value: float
    interval: list[float]
    p: float


def paired_difference(
    first: CorpusMetric,
    second: CorpusMetric,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compute the difference of a metric between two systems on the same images, its 95% interval and its p-value.

    The interval comes from the bootstrap, and the p-value from a permutation test. Bootstrap and test are paired by
    image, so that an image that is hard for both systems adds nothing to their difference.

    Args:
        first: The metric of the first system.
        second: The same metric of the second system; the images have to be the same, in the same order.
        num_resamples: The number of draws of the bootstrap, and also the number of permutations of the test.
        seed: The seed of the draws.

    Raises:
        ValueError: If the two metrics have different numbers of images.

    Reference:
        Koehn 2004, "Statistical significance tests for machine translation evaluation"; Fisher 1935, "The design of
        experiments", section 21.
    """
    if first.terms.shape != second.terms.shape:
        raise ValueError(
            f"the systems have {len(first.terms)} and {len(second.terms)} images: they have to be the same"
        )
    value = second.value - first.value

    # The same draw of images is applied to both systems: that is what makes the bootstrap paired.
    resampled = []
    for counts in _draws(len(first.terms), num_resamples, seed):
        second_values = second.combine(counts @ second.terms)
        first_values = first.combine(counts @ first.terms)
        resampled.append(second_values - first_values)

    # The permutation test: each image's results are exchanged or not, and the difference is computed anew.
    gap = second.terms - first.terms
    whole_first = first.terms.sum(0)
    whole_second = second.terms.sum(0)
    rng = np.random.default_rng(seed + 1)
    num_as_large = 0
    for start in range(0, num_resamples, _BLOCK):
        num_rows = min(_BLOCK, num_resamples - start)
        is_exchanged = rng.integers(0, 2, (num_rows, len(gap)))
        exchanged = is_exchanged.astype(float) @ gap
        second_permuted = second.combine(whole_second - exchanged)
        first_permuted = first.combine(whole_first + exchanged)
        permuted = second_permuted - first_permuted

        # The tolerance: exchanging nothing gives the difference itself, but a sum in another order may differ from it
        # in its last bits.
        is_as_large = np.abs(permuted) >= abs(value) * (1 - 1e-9)
        num_as_large += int(is_as_large.sum())

    # Both are one larger, since what was observed is one of the permutations. No p is 0.
    p = (num_as_large + 1) / (num_resamples + 1)
    interval = _interval(np.concatenate(resampled))
    return Difference(value, interval, p)
