"""Words of the references: what is met, what chance would meet, and which words are named."""

from __future__ import annotations

import pytest

from visllama.inspect.connector.words import ReferenceWords, binomial_tail, words_of

COLORS = ["red", "blue", "green", "black"] * 10
REFERENCES = [[f"A {color} thing.", "Nothing"] for color in COLORS]


def test_words_are_small_and_have_no_points():
    assert words_of(["A red, round", "Thing."]) == {"a", "red", "round", "thing"}


def test_a_vector_that_names_each_picture_meets_all_and_chance_meets_a_quarter():
    match = ReferenceWords(REFERENCES).match([{color, ""} for color in COLORS])
    assert match.own == 1
    # Of the 39 other pictures 9 are of the same color.
    assert match.other == pytest.approx(9 / 39)
    assert match.interval == pytest.approx([1 - 9 / 39] * 2)
    assert {(named.word, named.right, named.times, named.base) for named in match.named} == {
        (color, 10, 10, 0.25) for color in set(COLORS)
    }


def test_what_is_always_said_names_nothing():
    match = ReferenceWords(REFERENCES).match([{"red", "a", "thing"}] * 40)
    assert (match.own, match.other, match.interval, match.named) == (1, 1, [0, 0], [])


def test_what_is_said_of_others_is_not_named():
    match = ReferenceWords(REFERENCES).match([{color} for color in [*COLORS[1:], COLORS[0]]])
    assert match.own == 0 < match.other and match.named == []


def test_a_word_that_no_reference_has_is_left_out():
    match = ReferenceWords(REFERENCES).match([{"purple"}] * 40)
    assert (match.own, match.other, match.named) == (0, 0, [])


@pytest.mark.parametrize(
    ("right", "times", "base", "expected"), [(0, 5, 0.3, 1), (5, 5, 0.5, 1 / 32), (1, 2, 0.25, 7 / 16), (3, 3, 1.0, 1)]
)
def test_the_tail_is_that_of_a_coin(right, times, base, expected):
    assert binomial_tail(right, times, base) == pytest.approx(expected)
