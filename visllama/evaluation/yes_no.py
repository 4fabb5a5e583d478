"""Score answers that are yes or no: precision, recall and F1 of yes, and the share of yes among the answers.

Reference:
    Li et al. 2023, arXiv:2305.10355; `evaluate.py` of github.com/AoiDragon/POPE.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from visllama.config.choices import YES_NO_METRICS
from visllama.evaluation.statistics import CorpusMetric

NUM_COUNTS = 4
"""The number of columns of counts: yes that is right, yes that is wrong, no that is wrong, no that is right."""
_COLUMNS = {
    ("yes", "yes"): 0,
    ("yes", "no"): 1,
    ("no", "yes"): 2,
    ("no", "no"): 3,
}
"""The column of each pair of an answer and the truth."""
_NO = frozenset(("No", "no", "not"))


def as_yes_or_no(answer: str) -> str:
    """Return "no" if an answer has the word No, no or not before its first period, and "yes" for any other answer.

    This is the rule of POPE's own script: spaces separate words, and commas are dropped. An answer that says neither
    yes nor no counts as yes.
    """
    # Exactly as POPE's script does it, which knows no other sentence end and no capital NO.
    first_sentence, _, _ = answer.partition(".")
    words = first_sentence.replace(",", "").split(" ")
    return "no" if _NO.intersection(words) else "yes"


def yes_no_counts(said: str, truth: str) -> list[int]:
    """Return four counts of one question: right yes, wrong yes, wrong no, right no. One of them is 1, the others are 0.

    Args:
        said: The model's answer, "yes" or "no", as `as_yes_or_no` returns it.
        truth: The right answer, "yes" or "no".

    Raises:
        KeyError: If `said` or `truth` is any other text.
    """
    counts = [0] * NUM_COUNTS
    column = _COLUMNS[said, truth]
    counts[column] = 1
    return counts


def yes_no_metrics(counts: np.ndarray) -> dict[str, CorpusMetric]:
    """Return precision, recall, F1 and yes_share by these names, each as a `CorpusMetric` on the scale 0-100.

    Precision, recall and F1 are those of the answer yes; yes_share is the share of yes among the model's answers. A
    share whose whole is 0 counts as 0, for example the precision of a model that never says yes.

    Args:
        counts: Counts as `yes_no_counts` returns them, a row for each image or for each question, shape `(images 4)`.
    """
    return {name: CorpusMetric(counts, _COMBINE[name]) for name in YES_NO_METRICS}


def counts_of_images(counts: np.ndarray, images: list[str]) -> np.ndarray:
    """Sum the counts of the questions about each image, and return a row for each image, shape `(images 4)`.

    Args:
        counts: The counts of each question as `yes_no_counts` returns them, shape `(questions 4)`; at least one row.
        images: The id of each question's image, in the order of `counts`. The rows of the result are in the sorted
            order of these ids.
    """
    _, image_numbers = np.unique(np.array(images), return_inverse=True)
    num_images = image_numbers.max() + 1

    # `sums[image_numbers] += counts` would add one question of each image alone.
    sums = np.zeros((num_images, NUM_COUNTS))
    np.add.at(sums, image_numbers, counts)
    return sums


def _precision(sums: np.ndarray) -> np.ndarray:
    right_yes = sums[..., 0]
    wrong_yes = sums[..., 1]
    return _share(right_yes, right_yes + wrong_yes)


def _recall(sums: np.ndarray) -> np.ndarray:
    right_yes = sums[..., 0]
    wrong_no = sums[..., 2]
    return _share(right_yes, right_yes + wrong_no)


def _f1(sums: np.ndarray) -> np.ndarray:
    twice_right_yes = 2 * sums[..., 0]
    wrong_yes = sums[..., 1]
    wrong_no = sums[..., 2]
    return _share(twice_right_yes, twice_right_yes + wrong_yes + wrong_no)


def _yes_share(sums: np.ndarray) -> np.ndarray:
    right_yes = sums[..., 0]
    wrong_yes = sums[..., 1]
    return _share(right_yes + wrong_yes, sums.sum(-1))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return a share (0-100). A share of nothing is 0, for example the precision where yes is never said."""
    zeros = np.zeros_like(whole, dtype=float)
    return 100 * np.divide(part, whole, out=zeros, where=whole > 0)


_COMBINE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "precision": _precision,
    "recall": _recall,
    "F1": _f1,
    "yes_share": _yes_share,
}
