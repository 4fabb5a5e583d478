"""What is tried on a tiny tensor; most of it is shown by tests/config/test_checks.py, through the whole program."""

from __future__ import annotations

import pytest
import torch

from visllama.config.dry_run import check_decoding, check_machine
from visllama.config.schema import TrainerSettings
from visllama.errors import ConfigError


def test_a_trial_of_decoding_draws_no_random_number():
    """A run's first weights must not depend on it."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    check_decoding({"num_beams": 3, "max_new_tokens": 40, "do_sample": True})
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["custom_generate", "trust_remote_code"])
def test_decoding_runs_no_code_from_elsewhere(name):
    with pytest.raises(ConfigError, match=f"decoding.{name}"):
        check_decoding({name: "org/model"})


@pytest.mark.parametrize(
    ("cuda", "trainer", "says"),
    [
        (0, {"accelerator": "gpu", "devices": 1}, "trainer.accelerator=gpu: .* finds no such device here"),
        (0, {"accelerator": "cpu", "devices": [0, 1]}, "lists and -1 are for CUDA"),
        (2, {"accelerator": "gpu", "devices": 3}, "this machine has 2 of them"),
        (2, {"accelerator": "auto", "devices": [2]}, "this machine has 2 of them"),
        (2, {"accelerator": "gpu", "devices": 2}, None),
        (0, {"accelerator": "cpu", "devices": 3}, None),
    ],
)
def test_devices_that_the_machine_lacks(monkeypatch, cuda, trainer, says):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    trainer = TrainerSettings(precision="32-true", **trainer)
    if says is None:
        return check_machine(trainer)
    with pytest.raises(ConfigError, match=says):
        check_machine(trainer)
