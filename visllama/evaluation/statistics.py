"""How sure a score is, and whether one system is better than another.

Every metric of this package is a function of sums over images (`CorpusMetric`): a mean of scores, BLEU of counted
n-grams, METEOR of counted matches, VQA accuracy over the questions of each image. Drawing images again therefore costs
one matrix product for all metrics, and resampling treats a corpus metric as what it is, never as a mean of scores of
single images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

NUM_RESAMPLES = 2000
_LEVEL = 0.95
_BLOCK = 100
"""Resamples at a time, so that 40,000 images take 32 MB and not gigabytes."""


class CorpusMetric(NamedTuple):
    """A metric of a corpus, as a function of sums over its images.

    Attributes:
        terms: What each image adds to the sums, shape `(images terms)`.
        combine: Returns the metric of sums `(... terms)`, shape `(...)`.
    """

    terms: np.ndarray
    combine: Callable[[np.ndarray], np.ndarray]

    @property
    def value(self) -> float:
        """The metric of the whole corpus."""
        return float(self.combine(self.terms.sum(0)))

    @property
    def per_image(self) -> np.ndarray:
        """The metric of each image alone, shape `(images,)`."""
        return self.combine(self.terms)


def mean_metric(values: Sequence[float] | np.ndarray, counts: Sequence[int] | np.ndarray | None = None) -> CorpusMetric:
    """Return a metric that is a mean.

    Args:
        values: The score of each image; the sum of its scores where it has several.
        counts: How many scores each image has; None is one.
    """
    values = np.asarray(values, dtype=float)
    counts = np.ones_like(values) if counts is None else np.asarray(counts, dtype=float)
    return CorpusMetric(np.stack([values, counts], axis=1), _mean)


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def grouped_metric(values: np.ndarray, groups: Sequence[object]) -> CorpusMetric:
    """Return the mean of values of which several belong to an image, as questions do.

    The values of an image are drawn together: drawn one by one, values that go up and down with their image would look
    surer than they are.

    Args:
        values: The score of each question.
        groups: The image of each question.

    Reference:
        Field and Welsh 2007, "Bootstrapping clustered data".
    """
    group = np.unique(np.array(groups), return_inverse=True)[1]
    return mean_metric(np.bincount(group, values), np.bincount(group))


# -------------------------------------------------------------------------------------------------------- one system


def bootstrap_intervals(
    metrics: Mapping[str, CorpusMetric], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, list[float]]:
    """Return the 95% percentile bootstrap interval `[low, high]` of each metric of the same images.

    Args:
        metrics: The metrics, by name.
        num_resamples: How often as many images are drawn as there are, with replacement.
        seed: Decides the draws.

    Reference:
        Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    values: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    terms, places = _beside_each_other(metrics)
    for counts in _draws(len(terms), num_resamples, seed):
        sums = counts @ terms
        for name, metric in metrics.items():
            values[name].append(metric.combine(sums[:, places[name]]))
    return {name: _middle(np.concatenate(blocks)) for name, blocks in values.items()}


def _beside_each_other(metrics: Mapping[str, CorpusMetric]) -> tuple[np.ndarray, dict[str, slice]]:
    """Return the terms of all metrics as one matrix, and the columns of each."""
    places: dict[str, slice] = {}
    start = 0
    for name, metric in metrics.items():
        width = metric.terms.shape[1]
        places[name] = slice(start, start + width)
        start += width
    return np.concatenate([metric.terms for metric in metrics.values()], axis=1), places


def _draws(num_images: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks `(resamples images)` of how often each image is drawn."""
    rng = np.random.default_rng(seed)
    for start in range(0, num_resamples, _BLOCK):
        block = np.empty((min(_BLOCK, num_resamples - start), num_images))
        for row in block:
            drawn = rng.integers(0, num_images, num_images)
            row[:] = np.bincount(drawn, minlength=num_images)
        yield block


def _middle(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.quantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])]


# ------------------------------------------------------------------------------------------------------- two systems


class Difference(NamedTuple):
    """How a metric differs between two systems, which were judged on the same images.

    Attributes:
        value: The second system's metric less the first one's.
        interval: The 95% interval of that, as `[low, high]`, by the paired bootstrap.
        p: The share of random exchanges of the two systems' results, image by image, that give a difference as large.
    """

    value: float
    interval: list[float]
    p: float


def paired_difference(
    first: CorpusMetric, second: CorpusMetric, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Difference:
    """Compare two systems that were judged on the same images, in the same order.

    Both tests are paired: an image that is hard for both systems says nothing about their difference. For a mean of
    scores the exchange of an image's results is the flip of the sign of their difference.

    Args:
        first: The metric of the first system.
        second: The same metric of the second system.
        num_resamples: The number of resamples, and of permutations.
        seed: Decides the draws.

    Raises:
        ValueError: If they are not of the same number of images.

    Reference:
        Koehn 2004, "Statistical significance tests for machine translation evaluation"; Fisher 1935, "The design of
        experiments", section 21.
    """
    if first.terms.shape != second.terms.shape:
        raise ValueError(
            f"the systems have {len(first.terms)} and {len(second.terms)} images: they have to be the same"
        )
    value = second.value - first.value

    resampled = []
    for counts in _draws(len(first.terms), num_resamples, seed):
        resampled.append(second.combine(counts @ second.terms) - first.combine(counts @ first.terms))

    gap = second.terms - first.terms
    whole_first = first.terms.sum(0)
    whole_second = second.terms.sum(0)
    rng = np.random.default_rng(seed + 1)
    num_as_large = 0
    for start in range(0, num_resamples, _BLOCK):
        shape = (min(_BLOCK, num_resamples - start), len(gap))
        exchanged = rng.integers(0, 2, shape).astype(float) @ gap
        permuted = second.combine(whole_second - exchanged) - first.combine(whole_first + exchanged)
        # Exchanging nothing gives the difference itself; the sums of another order may differ in their last bits.
        num_as_large += int((np.abs(permuted) >= abs(value) * (1 - 1e-9)).sum())
    p = (num_as_large + 1) / (num_resamples + 1)  # what was observed is one of the permutations
    return Difference(value, _middle(np.concatenate(resampled)), p)
