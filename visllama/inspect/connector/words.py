"""Compare the tokens that an image vector is read by with the words of each picture's reference captions.

A vector that says what a picture shows has tokens that are words of that picture's own references more often than they
are words of another picture's references, which is the measure of chance.
"""

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
"""The level of the test whether a word is named more often than by chance."""


class NamedWord(NamedTuple):
    """A word that a vector names rightly more often than by chance.

    A vector "names" a word in a picture where one of its best tokens is that word.

    Attributes:
        word: The word, in small letters.
        right: The number of pictures in which the vector names the word, and a reference of that picture has it.
        times: The number of pictures in which the vector names the word.
        base: The share of all pictures, in [0, 1], whose references have the word: by chance, `right / times` is this.
    """

    word: str
    right: int
    times: int
    base: float


class WordMatch(NamedTuple):
    """How often a vector's best tokens are words of the reference captions.

    Attributes:
        own: The share of pictures, in [0, 1], in which one of the tokens is a word of the picture's own references.
        other: The same share with the references of another picture, as a mean over up to 50 other pictures: chance.
        interval: The 95% bootstrap interval of `own - other` over pictures, as `[low, high]`.
        named: Up to five words that the vector names rightly more often than by chance; the smallest p-value first.
    """

    own: float
    other: float
    interval: list[float]
    named: list[NamedWord]


class ReferenceWords:
    """The words of each picture's reference captions, against which `match` tests the tokens of a vector.

    Args:
        references: The reference captions of each picture; at least two pictures, since `match` compares each picture
            with others.

    Attributes:
        words: The different words of each picture's captions in small letters, in the order of the pictures.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        self.words = [words_of(captions) for captions in references]
        # A picture counts once for a word, however many of its captions have it.
        counts: Counter[str] = Counter()
        for words in self.words:
            counts.update(words)

        num_pictures = len(self.words)
        self._base = {word: count / num_pictures for word, count in counts.items()}

    def match(self, spoken: Sequence[set[str]]) -> WordMatch:
        """Return how often the tokens of one vector are words of the pictures' references, and which words these are.

        Args:
            spoken: The texts of the vector's best tokens in each picture, in small letters, in the order of the
                references.

        Raises:
            ValueError: If `spoken` has another length than the references.
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

        # Picture by picture, so that the interval is of a paired difference.
        difference = mean_metric(own - other)
        intervals = bootstrap_intervals({"difference": difference})
        return WordMatch(
            own=float(own.mean()),
            other=float(other.mean()),
            interval=intervals["difference"],
            named=self._named(spoken),
        )

    def _named(self, spoken: Sequence[set[str]]) -> list[NamedWord]:
        """Return up to five words that are named rightly more often than chance by a binomial test, the surest first.

        Reference:
            Bonferroni's correction: each of n words is tested at a level of 0.05 / n.
        """
        # A word of no reference can never be right, so it is not tested.
        times: Counter[str] = Counter()
        right: Counter[str] = Counter()
        for spoken_words, words in zip(spoken, self.words, strict=True):
            times.update(word for word in spoken_words if word in self._base)
            right.update(spoken_words & words)

        chances_of_words = []
        for word, count in times.items():
            base = self._base[word]
            named_word = NamedWord(word, right[word], count, base)
            chance = binomial_tail(right[word], count, base)
            chances_of_words.append((chance, named_word))

        sure_words = []
        for chance, named_word in chances_of_words:
            if chance < _LEVEL / len(chances_of_words):
                sure_words.append((chance, named_word))
        sure_words.sort()
        return [named_word for _, named_word in sure_words[:_MOST_NAMED]]


def _meets(spoken: Sequence[set[str]], references: Sequence[set[str]]) -> Float[np.ndarray, " pictures"]:
    """Return for each picture 1.0 where one of its `spoken` words is in its entry of `references`, otherwise 0.0."""
    pairs = zip(spoken, references, strict=True)
    meets = [not spoken_words.isdisjoint(words) for spoken_words, words in pairs]
    return np.array(meets, dtype=float)


def words_of(captions: Sequence[str]) -> set[str]:
    """Return the different words of captions, in small letters; punctuation is left out."""
    words: set[str] = set()
    for caption in captions:
        words.update(re.findall(r"\w+", caption.lower()))
    return words


def binomial_tail(right: int, times: int, base: float) -> float:
    """Return the probability that at least `right` of `times` independent draws succeed, each with probability `base`.

    This is the p-value of a one-sided binomial test.
    """
    probabilities = []
    for k in range(right, times + 1):
        num_orders = comb(times, k)
        probabilities.append(num_orders * base**k * (1 - base) ** (times - k))
    return sum(probabilities)
