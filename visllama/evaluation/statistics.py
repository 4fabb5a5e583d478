"""How sure a score is: bootstrap intervals over images, and over questions by their images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from visllama.evaluation.captions import CaptionScores
from visllama.evaluation.vqa import VqaScores


def bootstrap_interval(
    per_image: np.ndarray, num_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> list[float]:
    """Return the percentile bootstrap interval `[low, high]` of the mean over images.

    Reference:
        Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    rng = np.random.default_rng(seed)
    means = per_image[rng.integers(0, len(per_image), (num_resamples, len(per_image)))].mean(1)
    return _middle(means, level)


def clustered_interval(
    values: np.ndarray, groups: Sequence[object], num_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> list[float]:
    """Return the bootstrap interval of the mean where values of one group (questions on one image) are drawn together.

    Drawn one by one, values that go up and down with their image would look surer than they are.

    Reference:
        Field and Welsh 2007, "Bootstrapping clustered data".
    """
    rng = np.random.default_rng(seed)
    group = np.unique(np.array(groups), return_inverse=True)[1]
    sums, counts = np.bincount(group, values), np.bincount(group)
    # Draw by draw: all of them at once are gigabytes for VQAv2's 40,000 images.
    draws = (rng.integers(0, len(sums), len(sums)) for _ in range(num_resamples))
    return _middle(np.array([sums[draw].sum() / counts[draw].sum() for draw in draws]), level)


def _middle(means: np.ndarray, level: float) -> list[float]:
    return [float(value) for value in np.quantile(means, [(1 - level) / 2, (1 + level) / 2])]


def intervals(scores: CaptionScores) -> dict[str, list[float]]:
    """Return the interval of each metric that is a mean over images; BLEU and METEOR count over the whole corpus."""
    return {name: bootstrap_interval(scores.per_image[name]) for name in scores.metrics if name in ("ROUGE-L", "CIDEr")}


def vqa_intervals(scores: VqaScores) -> dict[str, list[float]]:
    """Return the interval of VQA accuracy (0-100), clustered by image; none where all questions are on one image."""
    if len(set(scores.groups)) < 2:
        return {}
    return {"accuracy": clustered_interval(100 * scores.per_question, scores.groups)}
