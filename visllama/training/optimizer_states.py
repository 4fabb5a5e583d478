"""Measure how much memory an optimizer of any class needs beside the weights, by one step on a small tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import nn

from visllama.config.choices import OWN_OPTIM_KEYS
from visllama.config.instantiate import build
from visllama.errors import ConfigError

_DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
"""Dtype of the trained tensors by the bytes of a number."""


class OptimizerStates(NamedTuple):
    """The size of the state that an optimizer keeps between steps, as Adam's two moments.

    Attributes:
        bytes_a_number: Bytes for each single value in the trained tensors.
        bytes_a_tensor: Bytes for each trained tensor, whatever its size: a count of steps, for example.
        steps_in_place: Whether a step makes no copy of the weights, because the optimizer has a fused form.
    """

    bytes_a_number: float
    bytes_a_tensor: int
    steps_in_place: bool


def measure_states(optim: Mapping[str, Any], plugins: Sequence[str], trained_bytes: int) -> OptimizerStates:
    """Build the optimizer of a config, take one step on a new 4 x 8 matrix, and return the size of its state after it.

    Args:
        optim: The `optim` config group: `_target_`, the optimizer's class, its arguments, and keys of our own.
        plugins: The names of the user's packages, in which the optimizer's class may be.
        trained_bytes: Bytes of each value in the trained tensors: 2, 4 or 8.

    Raises:
        ConfigError: If the optimizer cannot be made, or its step raises an exception.
        KeyError: If `trained_bytes` is another number.
    """
    arguments = {name: value for name, value in optim.items() if name not in OWN_OPTIM_KEYS}
    # A matrix, because an optimizer may keep other state for vectors.
    weight = nn.Parameter(torch.zeros(4, 8, dtype=_DTYPES[trained_bytes]))
    weight.grad = torch.zeros_like(weight)

    make = build(arguments | {"_partial_": True}, plugins)
    try:
        optimizer = make([weight])
        optimizer.step()
    # A class of the user's may raise any type.
    except Exception as error:
        raise ConfigError(f"optim._target_={optim['_target_']}: takes no step: {error}") from error

    values = optimizer.state[weight].values()
    states = [value for value in values if isinstance(value, torch.Tensor)]
    bytes_a_number = sum(state.element_size() for state in states if state.shape == weight.shape)
    bytes_a_tensor = sum(state.nbytes for state in states if state.shape != weight.shape)

    # `build_optimizer` takes the fused form where the class has one and the config does not forbid it.
    has_fused_form = "fused" in signature(make).parameters and arguments.get("fused") is not False
    return OptimizerStates(float(bytes_a_number), bytes_a_tensor, has_fused_form)
