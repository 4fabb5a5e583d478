"""What is known of weights: what is not there, or is no run's, counts as absent."""

from __future__ import annotations

import pytest

from visllama.errors import ConfigError
from visllama.evaluation.metrics_file import is_number, mapping, numbers
from visllama.release.run_facts import read_run


def test_weights_alone_are_counted_by_part(save_model):
    """The adapter's: two matrices of rank 4 beside q, v (128 to 128) and down (336 to 128) in four layers."""
    model, weights = save_model(lora=True)
    facts = read_run(weights)
    assert facts.folder is None and facts.evaluations == {} and facts.words is None
    connector = sum(parameter.numel() for parameter in model.connector.parameters())
    adapter = 4 * 4 * (2 * (128 + 128) + (336 + 128))
    assert facts.num_parameters == {"connector": connector, "markers": 256, "adapter": adapter}


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no visllama\.json"):
        read_run(tmp_path)


def test_values_of_other_kinds_are_nothing():
    assert mapping({"a": {"b": 3}}, "a", "b") == mapping([1], "a") == mapping({"a": None}, "a") == {}
    assert numbers({"a": 1, "b": "1", "c": True, "d": float("nan"), "e": 2.5}) == {"a": 1, "e": 2.5}
    assert not is_number(float("inf")) and is_number(0)
