"""What a connector keeps and computes: worked out by hand for one of two layers."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from visllama.model.counted import count_connector


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.second = nn.Linear(5, 4)

    def forward(self, features):
        return self.second(self.first(features).relu())


def test_two_layers_keep_their_inputs_and_under_autocast_a_copy_of_the_second():
    with torch.device("meta"):
        connector = TwoLayers()
    found = count_connector(connector, (6,))
    assert found.kept_bytes == 4 * (6 + 5)
    assert found.kept_bytes_mixed == 2 * (6 + 5)
    assert found.copied_bytes_mixed == 2 * 5 * 4
    assert found.flops == 2 * (6 * 5 + 5 * 4)


def test_each_patch_counts():
    of_one = count_connector(TwoLayers(), (1, 6))
    of_three = count_connector(TwoLayers(), (3, 6))
    assert of_three.kept_bytes == 3 * of_one.kept_bytes
    assert of_three.flops == 3 * of_one.flops
    assert of_three.copied_bytes_mixed == of_one.copied_bytes_mixed


class Complains(TwoLayers):
    def forward(self, features):
        warnings.warn("this dtype has no fast way", stacklevel=1)
        return super().forward(features)


def test_what_a_module_says_of_a_slow_way_is_not_said(recwarn):
    assert count_connector(Complains(), (6,)).flops
    assert not recwarn.list
