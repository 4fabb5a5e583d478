"""What an optimizer keeps beside the weights: measured on one small tensor, whatever its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import nn

from visllama.config.choices import OWN_OPTIM_KEYS
from visllama.config.instantiate import build
from visllama.errors import ConfigError

_DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


def measure_states(optim: Mapping[str, Any], plugins: Sequence[str], trained_bytes: int) -> tuple[float, int, bool]:
    """Take one step, and give what is kept then: bytes a number, bytes a tensor, and whether a step needs no copy.

    Args:
        optim: The `optim` config group.
        plugins: The user's packages, of which the optimizer may be.
        trained_bytes: Of a number of the trained tensors.

    Raises:
        ConfigError: If the optimizer takes no step.
    """
    own = {name: value for name, value in optim.items() if name not in OWN_OPTIM_KEYS}
    weight = nn.Parameter(torch.zeros(4, 8, dtype=_DTYPES[trained_bytes]))
    weight.grad = torch.zeros_like(weight)
    make = build(own | {"_partial_": True}, plugins)
    try:
        optimizer = make([weight])
        optimizer.step()
    except Exception as error:  # of whatever type a class of somebody else's raises
        raise ConfigError(f"optim._target_={optim['_target_']}: takes no step: {error}") from error
    kept = [value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
    each = sum(value.element_size() for value in kept if value.shape == weight.shape)
    of_tensor = sum(value.nbytes for value in kept if value.shape != weight.shape)
    return float(each), of_tensor, "fused" in signature(make).parameters and own.get("fused") is not False
