"""What is tried on a tiny tensor; most of it is shown by tests/config/test_checks.py, through the whole program."""

from __future__ import annotations

import sys

import pytest
import torch

from visllama.config.dry_run import check_decoding, check_loss, check_machine, check_schedule
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


OWN = """
import torch

class Falling:
    def __call__(self, progress):
        return 1 - progress

class Negative:
    def __call__(self, progress):
        return -progress

class Breaks:
    def __call__(self, *_):
        raise ZeroDivisionError("of mine")

class Mean:
    def __call__(self, logits, targets):
        return torch.nn.functional.cross_entropy(logits, targets)

class Each:
    def __call__(self, logits, targets):
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none")

class Trained(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_functions.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield ["own_functions"]
    sys.modules.pop("own_functions", None)


@pytest.mark.parametrize(
    ("check", "name", "message"),
    [
        (check_schedule, "Falling", None),
        (check_schedule, "Negative", r"optim\.schedule: Negative returns -0\.5 at 0\.5: a schedule is called with"),
        (check_schedule, "Breaks", r"optim\.schedule: Breaks fails at 0\.0: of mine"),
        (check_loss, "Each", None),
        (check_loss, "Mean", r"loss: for logits \(3, 7\) and targets \(3,\) Mean returns torch\.Size\(\[\]\)"),
        (check_loss, "Breaks", "loss: Breaks fails on the logits of three tokens: of mine"),
        (check_loss, "Trained", "loss: Trained holds tensors, which are neither trained nor saved"),
    ],
)
def test_functions_of_ones_own_are_tried(own, check, name, message):
    node = {"_target_": f"own_functions.{name}"}
    if message is None:
        check(node, own)
        return
    with pytest.raises(ConfigError, match=message):
        check(node, own)
