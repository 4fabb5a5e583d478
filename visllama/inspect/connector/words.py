"""Whether the tokens that a vector is read by name what is seen: words of the picture's own references."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from visllama.evaluation.statistics import bootstrap_intervals, mean_metric

_MOST_OTHERS = 50
"""The number of other pictures whose references each picture's words are compared with."""
_MOST_NAMED = 5
_LEVEL = 0.05


class NamedWord(NamedTuple):
    """A word that a vector is read by where it is right, more often than chance would have it.

    Attributes:
        word: The word.
        right: The number of pictures in which the word is named and is in a reference.
        times: The number of pictures in which the word is named: one of the first tokens is the word.
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
        other: The share in which one of them is a word of another picture's references: what chance gives.
        interval: The bootstrap interval of the difference of both shares over pictures, 95%.
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
            spoken: The words that the vector is read by, for each picture.
        """
        own = _meets(spoken, self.words)

        # The references of other pictures: those of all pictures, shifted against the pictures by some places.
        num_pictures = len(self.words)
        num_others = min(num_pictures - 1, _MOST_OTHERS)
        other = np.zeros(num_pictures)
        for shift in range(1, num_others + 1):
            shifted = [*self.words[shift:], *self.words[:shift]]
            other += _meets(spoken, shifted)
        other /= num_others

        intervals = bootstrap_intervals({"difference": mean_metric(own - other)})
        return WordMatch(
            own=float(own.mean()),
            other=float(other.mean()),
            interval=intervals["difference"],
            named=self._named(spoken),
        )

    def _named(self, spoken: Sequence[set[str]]) -> list[NamedWord]:
        """Return the words whose count of right pictures a binomial test tells from chance, corrected for their number.

        Reference:
            Bonferroni's correction: each of n words is tested at a level of 0.05 / n.
        """
        # A word of no reference can never be right, so it is not tested.
        times: Counter[str] = Counter()
        right: Counter[str] = Counter()
        for spoken_words, words in zip(spoken, self.words, strict=True):
            times.update(word for word in spoken_words if word in self._base)
            right.update(spoken_words & words)

        tested = []
        for word, count in times.items():
            chance = binomial_tail(right[word], count, self._base[word])
            tested.append((chance, NamedWord(word, right[word], count, self._base[word])))

        sure = [(chance, named) for chance, named in tested if chance < _LEVEL / len(tested)]
        sure.sort()
        return [named for _, named in sure[:_MOST_NAMED]]


def _meets(spoken: Sequence[set[str]], references: Sequence[set[str]]) -> Float[np.ndarray, " pictures"]:
    """Return 1 for each picture of which a word is among the words of the references beside it, otherwise 0."""
    pairs = zip(spoken, references, strict=True)
    return np.array([not spoken_words.isdisjoint(words) for spoken_words, words in pairs], dtype=float)


def words_of(captions: Sequence[str]) -> set[str]:
    """Return the words of captions in small letters."""
    words: set[str] = set()
    for caption in captions:
        words.update(re.findall(r"\w+", caption.lower()))
    return words


def binomial_tail(right: int, times: int, base: float) -> float:
    """Return the probability that at least `right` of `times` draws succeed, each with the probability `base`."""
    probabilities = (comb(times, k) * base**k * (1 - base) ** (times - k) for k in range(right, times + 1))
    return sum(probabilities)
