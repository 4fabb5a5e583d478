"""Predictions of another split than the references are told as that, before anything is scored."""

from __future__ import annotations

import pytest

from visllama.errors import ConfigError
from visllama.evaluation.captions import check_same_ids
from visllama.evaluation.vqa import Asked, score_answers


def test_of_captions():
    references = {f"r{number}": ["a"] for number in range(3)}
    with pytest.raises(
        ConfigError,
        match=r"0 of 7 predictions are of one of the 3 images with references, first p0, p1, p2, p3, p4: is this another",
    ):
        check_same_ids({f"p{number}": "a" for number in range(7)}, references)
    with pytest.raises(ConfigError, match=r"1 predictions are of images without references, first p0$"):
        check_same_ids({"r0": "a", "p0": "a"}, references)


def test_of_answers():
    questions = {"q": Asked("?", ["a"], "1", {})}
    with pytest.raises(
        ConfigError, match=r"0 of 1 predictions answer one of the 1 questions, first p: is this another split"
    ):
        score_answers({"p": "a"}, questions)
