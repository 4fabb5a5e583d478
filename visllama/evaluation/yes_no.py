"""Score answers that are yes or no: precision, recall and F1 of yes, and how often it is said.

Reference:
    Li et al. 2023, arXiv:2305.10355; `evaluate.py` of github.com/AoiDragon/POPE.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from visllama.config.choices import YES_NO_METRICS
from visllama.evaluation.statistics import CorpusMetric

NUM_COUNTS = 4
"""The counts of a question: yes that is right, yes that is wrong, no that is wrong, no that is right."""
_NO = frozenset(("No", "no", "not"))


def as_yes_or_no(answer: str) -> str:
    """Return "no" if the first sentence of an answer has the word No, no or not, and "yes" for any other answer.

    This is POPE's own rule. An answer that says neither therefore counts as yes.
    """
    sentence = answer.partition(".")[0].replace(",", "")
    return "no" if _NO.intersection(sentence.split(" ")) else "yes"


def yes_no_counts(said: str, truth: str) -> list[int]:
    """Return the counts of one question, of which one is 1."""
    place = {("yes", "yes"): 0, ("yes", "no"): 1, ("no", "yes"): 2, ("no", "no"): 3}[said, truth]
    return [int(place == number) for number in range(NUM_COUNTS)]


def yes_no_metrics(counts: np.ndarray) -> dict[str, CorpusMetric]:
    """Return the metrics (0-100) of the counts of each image, shape `(images 4)`."""
    return {name: CorpusMetric(counts, _COMBINE[name]) for name in YES_NO_METRICS}


def counts_of_images(counts: np.ndarray, images: list[str]) -> np.ndarray:
    """Return the counts of each image, whose questions are drawn together, from those of each question."""
    image = np.unique(np.array(images), return_inverse=True)[1]
    sums = np.zeros((image.max() + 1, NUM_COUNTS))
    np.add.at(sums, image, counts)
    return sums


def _precision(sums: np.ndarray) -> np.ndarray:
    right_yes, wrong_yes = sums[..., 0], sums[..., 1]
    return _share(right_yes, right_yes + wrong_yes)


def _recall(sums: np.ndarray) -> np.ndarray:
    right_yes, wrong_no = sums[..., 0], sums[..., 2]
    return _share(right_yes, right_yes + wrong_no)


def _f1(sums: np.ndarray) -> np.ndarray:
    twice_right_yes = 2 * sums[..., 0]
    return _share(twice_right_yes, twice_right_yes + sums[..., 1] + sums[..., 2])


def _yes_share(sums: np.ndarray) -> np.ndarray:
    return _share(sums[..., 0] + sums[..., 1], sums.sum(-1))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return a share (0-100), which is 0 of nothing: as precision is where yes is never said."""
    return 100 * np.divide(part, whole, out=np.zeros_like(whole, dtype=float), where=whole > 0)


_COMBINE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "precision": _precision,
    "recall": _recall,
    "F1": _f1,
    "yes_share": _yes_share,
}
