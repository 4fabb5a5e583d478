"""Build the optimizer of the trained tensors, and its schedule over optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Protocol, cast

import torch
from jaxtyping import Bool
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from visllama.config.choices import OWN_OPTIM_KEYS
from visllama.config.instantiate import build
from visllama.model.visllama import part_of

LEAST_WARMUP_STEPS = 10
"""The least number of warm-up steps: at the published rate of 4e-3 a short run diverges with fewer."""


class _FusedOptimizer(Protocol):
    """The attributes through which torch's fused optimizers take a step or not, without the CPU knowing it.

    Attributes:
        grad_scale: The scale of the gradients; None is 1.
        found_inf: A number on the device; the step is not taken if it is 1.
    """

    grad_scale: Tensor | None
    found_inf: Tensor


def lr_scale(model: nn.Module, part: str) -> float:
    """Return the factor of a part's learning rate to `optim.lr`: the `lr_scale` of its class, else 1."""
    return getattr(getattr(model, part, None), "lr_scale", 1.0)


def part_rate(model: nn.Module, part: str, lr: float, lr_by_part: Mapping[str, float | None]) -> float:
    """Return the highest learning rate of a part.

    Args:
        model: The model.
        part: The name of the part.
        lr: The value of `optim.lr`, which `lr_scale` multiplies.
        lr_by_part: The value of `optim.lr_by_part`: a rate in it is taken as it is.
    """
    return lr_by_part.get(part) or lr * lr_scale(model, part)


def parameter_groups(
    model: nn.Module, lr: float, lr_by_part: Mapping[str, float | None], weight_decay: float
) -> list[dict]:
    """Return the trained tensors in groups by part, and by whether they decay.

    Matrices decay; vectors and the markers do not.

    Returns:
        One dictionary for each group, as torch's optimizers take it: `name`, `params`, `lr` and `weight_decay`.
    """
    groups: dict[tuple[str, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue

        part = part_of(name)
        decays = parameter.ndim > 1 and part != "markers"
        if (part, decays) not in groups:
            groups[part, decays] = {
                "name": part if decays else f"{part}, no decay",
                "params": [],
                "lr": part_rate(model, part, lr, lr_by_part),
                "weight_decay": weight_decay if decays else 0.0,
            }
        groups[part, decays]["params"].append(parameter)

    return list(groups.values())


def build_optimizer(model: nn.Module, config: Mapping, plugins: Sequence[str] = ()) -> Optimizer:
    """Build the optimizer of the trained tensors.

    On CUDA it is torch's fused form, where there is one: it can leave out a step without waiting for the GPU.

    Args:
        model: The model; tensors that require no gradient are left out.
        config: The `optim` group, whose `_target_` is a class of torch or of the user's.
        plugins: The user's packages.
    """
    groups = parameter_groups(model, config["lr"], config["lr_by_part"], config["weight_decay"])
    arguments = {key: value for key, value in config.items() if key not in OWN_OPTIM_KEYS}

    target = {"_target_": arguments.pop("_target_"), "_partial_": True}
    make = build(target | arguments, plugins)

    parameters = [parameter for group in groups for parameter in group["params"]]
    is_on_cuda = all(parameter.is_cuda for parameter in parameters)
    if is_on_cuda and "fused" in signature(make).parameters:
        # A `fused` of the config's own stays.
        arguments.setdefault("fused", True)
        make = build(target | arguments, plugins)

    return make(groups)


def step_if_finite(optimizer: LightningOptimizer | Optimizer, is_finite: Bool[Tensor, ""]) -> None:
    """Take a step, or leave weights and the optimizer's state as they are, to the bit.

    Lightning counts a step either way.

    Args:
        optimizer: The optimizer. Its fused form reads `is_finite` on the device; for any other the CPU waits for it.
        is_finite: Whether the loss and the gradients are finite: a boolean on the device.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if getattr(inner, "_step_supports_amp_scaling", False):
        # These attributes are made for mixed precision, where a step with an infinite gradient is left out too.
        fused = cast("_FusedOptimizer", inner)
        fused.grad_scale = None
        fused.found_inf = (~is_finite).to(torch.float32)

        optimizer.step()
        del fused.grad_scale
        del fused.found_inf
        return

    if not is_finite.item():
        # Parameters without gradients are left out by `step`.
        optimizer.zero_grad()
    optimizer.step()


def warmup_steps(fraction: float, num_steps: int) -> int:
    """Return the number of steps over which the rate rises: a fraction of all steps, and at least `LEAST_WARMUP_STEPS`.

    A fraction of 0 is no warm-up. A run that is shorter than its warm-up ends before the rate is reached.
    """
    if not fraction:
        return 0
    return max(round(fraction * num_steps), LEAST_WARMUP_STEPS)


_SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    "linear": lambda x: 1 - x,
    "constant": lambda x: 1.0,
}
"""Share of the rate, by how much of the steps after the warm-up is done, from 0 to 1."""


def build_schedule(optimizer: Optimizer, config: Mapping, num_steps: int, plugins: Sequence[str] = ()) -> LambdaLR:
    """Build the schedule: the rate rises linearly over `warmup_steps`, and then follows the shape of `optim.schedule`.

    A shape is a function from the part of the steps after the warm-up that is done, from 0 to 1, to a share of the
    rate. It has no state to be saved, since a resumed run calls it at the same steps.

    Args:
        optimizer: The optimizer, whose rates are the highest ones.
        config: The `optim` group. Its `schedule` is the name of a shape, or a node with the `_target_` of the user's.
        num_steps: The number of optimizer steps of the run.
        plugins: The user's packages.
    """
    warmup = max(1, warmup_steps(config["warmup_fraction"], num_steps))

    chosen = config["schedule"]
    shape = _SHAPES[chosen] if isinstance(chosen, str) else build(chosen, plugins)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup

        done = (step - warmup) / max(1, num_steps - warmup)
        return shape(min(1.0, done))

    return LambdaLR(optimizer, factor)
