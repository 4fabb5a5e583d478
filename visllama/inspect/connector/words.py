"""Whether the tokens that a vector is read by name what is seen: words of the picture's own references."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np

from visllama.evaluation.statistics import bootstrap_intervals, mean_metric

_MOST_OTHERS = 50
"""Each picture's words are compared with the references of so many other pictures."""
_MOST_NAMED = 5
_LEVEL = 0.05


class NamedWord(NamedTuple):
    """A word that a vector is read by where it is right, more often than chance would have it.

    Attributes:
        word: The word.
        right: In how many of these pictures a reference has the word.
        times: In how many pictures one of the first tokens is the word.
        base: The share of all pictures whose references have the word: what chance would give.
    """

    word: str
    right: int
    times: int
    base: float


class WordMatch(NamedTuple):
    """How well the tokens of a vector meet the words of the references.

    Attributes:
        own: The share of pictures in which one of the first tokens is a word of the picture's references.
        other: The same with the references of other pictures: what chance gives.
        interval: The bootstrap interval of the difference over pictures, 95%.
        named: The words that are named rightly more often than chance would have it, the surest first.
    """

    own: float
    other: float
    interval: list[float]
    named: list[NamedWord]


class ReferenceWords:
    """The words of the references of each picture.

    Args:
        references: The captions of each picture.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        self.words = [words_of(captions) for captions in references]
        counts = Counter(word for words in self.words for word in words)
        self._base = {word: count / len(self.words) for word, count in counts.items()}

    def match(self, spoken: Sequence[set[str]]) -> WordMatch:
        """Compare the words that a vector is read by with those of the references.

        Args:
            spoken: The words for each picture.
        """
        num_pictures = len(self.words)
        shifts = range(1, min(num_pictures - 1, _MOST_OTHERS) + 1)
        own = np.array([not said.isdisjoint(words) for said, words in zip(spoken, self.words, strict=True)], float)
        other = np.zeros(num_pictures)
        for shift in shifts:
            shifted = [*self.words[shift:], *self.words[:shift]]
            other += [not said.isdisjoint(words) for said, words in zip(spoken, shifted, strict=True)]
        other /= len(shifts)
        interval = bootstrap_intervals({"difference": mean_metric(own - other)})["difference"]
        return WordMatch(float(own.mean()), float(other.mean()), interval, self._named(spoken))

    def _named(self, spoken: Sequence[set[str]]) -> list[NamedWord]:
        """Return the words whose count of right pictures a binomial test tells from chance, corrected for their number.

        Reference:
            Bonferroni's correction: each of n words is tested at a level of 0.05 / n.
        """
        times = Counter(word for said in spoken for word in said if word in self._base)
        right = Counter()
        for said, words in zip(spoken, self.words, strict=True):
            right.update(said & words)
        tested = []
        for word, count in times.items():
            chance = binomial_tail(right[word], count, self._base[word])
            tested.append((chance, NamedWord(word, right[word], count, self._base[word])))
        sure = sorted(entry for entry in tested if entry[0] < _LEVEL / len(tested))
        return [named for _, named in sure[:_MOST_NAMED]]


def words_of(captions: Sequence[str]) -> set[str]:
    """Return the words of captions in small letters."""
    return {word for caption in captions for word in re.findall(r"\w+", caption.lower())}


def binomial_tail(right: int, times: int, base: float) -> float:
    """Return how likely at least `right` of `times` draws succeed by chance, each with the probability `base`."""
    return sum(comb(times, k) * base**k * (1 - base) ** (times - k) for k in range(right, times + 1))
