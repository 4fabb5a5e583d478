"""What the paired tests say of captions: of a system beside itself, of equally good ones, and of a small loss."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.scene_captions import scene_captions, wrong_words
from visllama.evaluation.captions import CaptionScorer
from visllama.evaluation.statistics import bootstrap_intervals, mean_metric, paired_difference

NUM_IMAGES = 1000


@pytest.fixture(scope="module")
def scored():
    """CIDEr of 1,000 scenes by three systems: a person with slips, the same who slips elsewhere, and the first one whose
    captions lack their last word in a tenth of the images."""
    references, captions = scene_captions(NUM_IMAGES, 5)
    first = wrong_words(captions, share=0.15, seed=1)
    other = wrong_words(captions, share=0.15, seed=2)
    cut = dict(first)
    for key in np.random.default_rng(3).permutation(sorted(first))[: NUM_IMAGES // 10]:
        cut[key] = first[key].rpartition(" ")[0]
    scorer = CaptionScorer(references)
    return {
        name: scorer.score(texts, ("BLEU", "CIDEr")).metrics
        for name, texts in {"first": first, "other": other, "cut": cut}.items()
    }


@pytest.mark.proof
def test_a_system_beside_itself(scored):
    for metric in scored["first"].values():
        assert paired_difference(metric, metric) == (0.0, [0.0, 0.0], 1.0)


@pytest.mark.proof
def test_a_lost_last_word_in_a_tenth_of_the_captions_is_found(scored):
    """Each system's own interval holds the other's value, so that they overlap by far; the paired test is sure."""
    whole, cut = scored["first"]["CIDEr"], scored["cut"]["CIDEr"]
    low, high = bootstrap_intervals({"CIDEr": whole})["CIDEr"]
    cut_low, cut_high = bootstrap_intervals({"CIDEr": cut})["CIDEr"]
    assert low < cut.value < high and cut_low < whole.value < cut_high
    found = paired_difference(whole, cut)
    assert found.value < 0 and found.p < 0.01 and found.interval[1] < 0


@pytest.mark.proof
def test_equally_good_systems_are_told_apart_in_five_of_a_hundred_cases(scored):
    """2,000 times 200 of the 1,000 images are drawn, and for each a coin says which of two systems is called the first:
    then neither is better. Five in a hundred are 5% give or take two standard errors (1%)."""
    one = scored["first"]["CIDEr"].per_image
    two = scored["other"]["CIDEr"].per_image
    rng = np.random.default_rng(0)
    by_p = 0
    by_interval = 0
    for trial in range(2000):
        drawn = rng.integers(0, NUM_IMAGES, 200)
        is_exchanged = rng.random(200) < 0.5
        first = np.where(is_exchanged, two[drawn], one[drawn])
        second = np.where(is_exchanged, one[drawn], two[drawn])
        found = paired_difference(mean_metric(first), mean_metric(second), num_resamples=1000, seed=trial)
        by_p += found.p < 0.05
        by_interval += not found.interval[0] <= 0 <= found.interval[1]
    print(f"false positives: p < 0.05 in {by_p / 20:.2f}%, the interval leaves out 0 in {by_interval / 20:.2f}%")
    assert 0.04 <= by_p / 2000 <= 0.06
    assert 0.04 <= by_interval / 2000 <= 0.065, "a percentile interval of 200 images is a little too narrow"
