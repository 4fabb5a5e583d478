"""Sentences say what the figures say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.found_study import NORMS, scores, vectors
from visllama.inspect.connector.findings import find, signed


def test_all_that_stands_out_is_said():
    assert find(scores(), vectors(), NORMS) == [
        "CIDEr is 100.0 with the pictures, 30.0 with shuffled ones and 20.0 with blank ones.",
        "Removed, vector 2 costs most: -40.0 (-45.0 to -35.0). 2 of 3 (1, 3), one at a time, can be removed without a "
        "measurable loss.",
        "Held at its mean over the pictures, vector 2 costs most: -50.0 (-55.0 to -45.0). 1 of 3 (1), one at a time, can "
        "be held without a measurable loss.",
        "With all vectors held at their means CIDEr is 25.0; let vector 2 alone change with the picture, and it is 75.0 "
        "(+45.0 to +55.0) of 100.0.",
        "Without the two markers: -1.0 (-6.0 to +4.0).",
        "From 2% (vector 1) to 90% (vector 2) of a vector changes with the picture; the rest is the same for all.",
        "The nearest token has a cosine of 0.40 to 0.40. By its five nearest, vector 2 says most: they hold a word of the "
        "picture's own references in 60% of the pictures, of others' in 20% (95% of the difference: +35 to +45 points).",
        "Named more often than by chance: red by vector 2 (9 right of 10).",
        "An image vector is 4.0 times as long as a text embedding (medians 4.00 and 1.00).",
    ]


def test_none_or_all_can_be_spared():
    def sentence(interval):
        changed = [replace(s, interval=interval) if s.ablation.kind == "removed" else s for s in scores()]
        return find(changed, vectors(), NORMS)[1]

    assert "Each of them, one at a time, can be removed without a measurable loss." in sentence([-0.5, 0.1])
    assert "None can be removed without a measurable loss." in sentence([-0.5, -0.1])


def test_where_nothing_is_named_it_says_so():
    silent = [vectors()[0], vectors()[2]]
    assert any(sentence.startswith("No vector names a word") for sentence in find(scores(), silent, NORMS))


@pytest.mark.parametrize(("value", "text"), [(-0.4, "-40.0"), (0.001, "+0.1"), (0.0, "0.0"), (-0.0001, "0.0")])
def test_a_difference_has_a_sign_unless_it_is_nothing(value, text):
    assert signed(value) == text
