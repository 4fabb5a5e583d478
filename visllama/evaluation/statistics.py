"""How sure a score is: bootstrap intervals over images."""

from __future__ import annotations

import numpy as np

from visllama.evaluation.captions import CaptionScores


def bootstrap_interval(
    per_image: np.ndarray, num_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> list[float]:
    """Give the percentile bootstrap interval `[low, high]` of the mean over images.

    Reference:
        Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    rng = np.random.default_rng(seed)
    means = per_image[rng.integers(0, len(per_image), (num_resamples, len(per_image)))].mean(1)
    return [float(value) for value in np.quantile(means, [(1 - level) / 2, (1 + level) / 2])]


def intervals(scores: CaptionScores) -> dict[str, list[float]]:
    """Give the interval of each metric that is a mean over images; BLEU and METEOR count over the whole corpus."""
    return {name: bootstrap_interval(scores.per_image[name]) for name in scores.metrics if name in ("ROUGE-L", "CIDEr")}
