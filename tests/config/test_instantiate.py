import pytest
import torch

from visllama.config.instantiate import build, targets
from visllama.errors import ConfigError


def test_a_node_becomes_the_object_that_it_names():
    make = build({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5, "momentum": 0.9})
    optimizer = make([torch.zeros(1, requires_grad=True)])
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.param_groups[0]["lr"] == 0.5 and optimizer.param_groups[0]["momentum"] == 0.9


def test_every_target_is_found_however_deep_it_lies():
    node = {"_target_": "a", "x": [1, {"_target_": "b", "y": {"_target_": "c"}}]}
    assert list(targets(node)) == ["a", "b", "c"]


def test_a_foreign_target_inside_an_argument_is_refused_before_anything_is_called():
    with pytest.raises(ConfigError, match=r"_target_='os\.system' is not allowed"):
        build(
            {"_target_": "torch.optim.SGD", "_partial_": True, "params": {"_target_": "os.system", "command": "true"}}
        )
