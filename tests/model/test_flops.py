"""The arithmetic of a sample, by its tokens and its images; `tests/plan/test_speed.py` holds it to what torch counts."""

from __future__ import annotations

import pytest

from visllama.model.flops import flops
from visllama.model.shapes import read_shapes


@pytest.fixture
def counts(make_model):
    shapes = read_shapes(make_model())
    return lambda *arguments: {part.name: part.count for part in flops(shapes, *arguments)}


def test_blocks_grow_with_tokens_and_attention_with_their_square(counts):
    short, long = counts(20.0, False), counts(40.0, False)
    assert long["frozen blocks"] == 2 * short["frozen blocks"] and long["attention"] == 4 * short["attention"]
    assert long["vision encoder"] == short["vision encoder"]


def test_what_looks_at_images_grows_with_them(counts):
    one, two, none = counts(20.0, False), counts(20.0, False, 2.0), counts(20.0, False, 0.0)
    for name in ("vision encoder", "connector"):
        assert two[name] == 2 * one[name] and name not in none
    assert {name: two[name] for name in none} == none
