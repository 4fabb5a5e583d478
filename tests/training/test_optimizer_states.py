"""What an optimizer keeps."""

from __future__ import annotations

import pytest

from visllama.training.optimizer_states import measure_states


@pytest.mark.parametrize(
    ("optim", "kept"),
    [
        ({"_target_": "torch.optim.AdamW"}, (8, 4, True)),
        ({"_target_": "torch.optim.AdamW", "amsgrad": True, "fused": False}, (12, 4, False)),
        ({"_target_": "torch.optim.SGD"}, (0, 0, True)),
        ({"_target_": "torch.optim.SGD", "momentum": 0.9}, (4, 0, True)),
        ({"_target_": "torch.optim.RMSprop"}, (4, 4, False)),
    ],
)
def test_what_an_optimizer_keeps_is_measured(optim, kept):
    assert measure_states({"lr": 0.1, "schedule": "constant", **optim}, [], 4) == kept
