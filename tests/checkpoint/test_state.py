"""What of a run lies in tensors: taken from model and optimizer, and put back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support.checkpoints import Parts, trained, write
from visllama.checkpoint.folder import read_rest
from visllama.checkpoint.state import read_tensors, state_of
from visllama.errors import ConfigError


def test_what_is_written_is_read_into_model_and_optimizer(tmp_path):
    path = write(tmp_path, 4, steps=3)
    assert sorted(p.name for p in path.iterdir())[:2] == ["COMPLETE", "rest.pt"]
    expected, its_optimizer = trained(3)
    model, optimizer = trained(0)
    rest = read_rest(path)
    assert rest["global_step"] == 4
    read_tensors(path, model, optimizer, rest["optimizer_groups"])
    assert all((a == b).all() for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert all((a == b).all() for a, b in zip(model.buffers(), expected.buffers(), strict=True))
    assert model[2].num_batches_tracked == 3
    for parameter, other in zip(model[1].parameters(), expected[1].parameters(), strict=True):
        state, wanted = optimizer.state[parameter], its_optimizer.state[other]
        assert state.keys() == wanted.keys() and all((state[key] == wanted[key]).all() for key in wanted)
    for steps in ((model, optimizer), (expected, its_optimizer)):  # and they go on alike, to the bit
        torch.manual_seed(7)
        steps[0](torch.randn(5, 3)).square().sum().backward()
        steps[1].step()
    assert all((a == b).all() for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_only_what_is_trained_is_in_it(tmp_path):
    model, optimizer = trained()
    tensors, groups = state_of(model, optimizer)
    buffers = {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    assert {name.rpartition("/")[2] for name in tensors} == {"1.weight", "1.bias", "2.weight", "2.bias"} | buffers
    assert "params" not in groups[0] and groups[0]["lr"] == 0.1


def test_another_models_tensors_are_refused_by_name(tmp_path):
    path = write(tmp_path, 4)
    other = Parts(nn.Linear(3, 4), nn.Linear(4, 3), nn.BatchNorm1d(2))
    other[0].requires_grad_(False)
    with pytest.raises(ConfigError, match=r"not this model's: 2 differ: 1\.bias, 1\.weight"):
        read_tensors(path, other, torch.optim.AdamW(other.parameters()), [])


def test_a_checkpoint_without_a_buffer_is_refused(tmp_path):
    path = write(tmp_path, 4)
    other = Parts(nn.Linear(3, 4), nn.Linear(4, 2), nn.BatchNorm1d(2))
    other[0].requires_grad_(False)
    other[2].register_buffer("count", torch.zeros(()))
    with pytest.raises(ConfigError, match=r"not this model's: 1 differ: 2\.count"):
        read_tensors(path, other, torch.optim.AdamW(other.parameters()), [])
