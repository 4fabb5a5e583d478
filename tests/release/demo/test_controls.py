"""What the page's controls stand for, and how an event is answered that is refused."""

from __future__ import annotations

import pytest

from visllama.errors import ConfigError
from visllama.release.demo.controls import decoding_of
from visllama.release.demo.served import Served

SERVED = Served("a", None, {"num_beams": 3, "max_new_tokens": 40}, 1)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("as the weights say", {"num_beams": 3, "max_new_tokens": 9}),
        ("greedy", {"num_beams": 1, "do_sample": False, "max_new_tokens": 9}),
        ("beams", {"num_beams": 5, "do_sample": False, "max_new_tokens": 9}),
        ("sampling", {"num_beams": 1, "do_sample": True, "temperature": 0.7, "max_new_tokens": 9}),
    ],
)
def test_each_method_is_its_settings(method, expected):
    assert decoding_of(SERVED, method, 5, 0.7, 9) == expected


@pytest.mark.parametrize(
    ("method", "values"), [("beams", (99, 0.7, 9)), ("sampling", (5, -1, 9)), ("greedy", (5, 1, 0))]
)
def test_what_the_page_cannot_send_is_refused(method, values):
    with pytest.raises(ConfigError):
        decoding_of(SERVED, method, *values)
