from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from visllama.errors import ConfigError
from visllama.signatures import check_arguments, find_refused, matches_hint


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, True), (3, float, True), (3.5, int, False), (True, int, False), (True, float, False), ("3", int, False),
        (True, bool, True), (1, bool, False), (None, int | None, True), (None, int, False), ("x", int | None, False),
        ([1, 2], tuple[float, float], True), ([1], list[int], True), ([1], Sequence[int], True), ("ab", Sequence[str], False),
        ({"a": 1}, Mapping[str, int], True), (3, Mapping, False), (object(), Any, True),
    ],
)  # fmt: skip
def test_values_out_of_yaml_against_hints(value, hint, expected):
    assert matches_hint(value, hint) is expected


class Layer:
    def __init__(self, dim: int, scale: float = 1.0) -> None:
        if dim == 13:
            raise ValueError("13 brings bad luck")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"dim": "x"}, "part.dim=x: must be int, not str"),
        ({"dim": 3, "scale": None}, "part.scale=None: must be float, not null"),
        ({"dim": 3, "scael": 2.0}, "'scael'; Layer takes dim, scale"),
        ({}, "'dim'"),
    ],
)
def test_arguments_are_held_to_the_signature(given, says):
    check_arguments("part", Layer, {"dim": 3}, set())
    with pytest.raises(ConfigError, match=says):
        check_arguments("part", Layer, given, set())


def test_the_argument_that_is_refused_is_found():
    find_refused("part", lambda given: Layer(**({"dim": 1} | given)), {"dim": 3, "scale": 2.0})
    with pytest.raises(ConfigError, match=r"^part\.dim=13: 13 brings bad luck$"):
        find_refused("part", lambda given: Layer(**({"dim": 1} | given)), {"dim": 13, "scale": 2.0})
