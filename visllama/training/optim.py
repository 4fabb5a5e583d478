"""The optimizer over trained tensors alone, and its schedule over optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from inspect import signature

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from visllama.config.choices import OWN_OPTIM_KEYS
from visllama.config.instantiate import build
from visllama.model.visllama import part_of

LEAST_WARMUP_STEPS = 10
"""Steps of warm-up where `warmup_fraction` makes fewer: at the published 4e-3 a short run diverges with fewer."""


def lr_scale(model: nn.Module, part: str) -> float:
    """Return how fast a part learns beside `optim.lr`, as its class says."""
    return getattr(getattr(model, part, None), "lr_scale", 1.0)


def part_rate(model: nn.Module, part: str, lr: float, lr_by_part: Mapping[str, float | None]) -> float:
    """Return a part's highest learning rate: the one given for it, taken as it is, or its share of `lr`."""
    return lr_by_part.get(part) or lr * lr_scale(model, part)


def parameter_groups(
    model: nn.Module, lr: float, lr_by_part: Mapping[str, float | None], weight_decay: float
) -> list[dict]:
    """Group the trained tensors by part and by whether they decay: matrices do, vectors and the markers do not."""
    groups: dict[tuple[str, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = part_of(name)
            part_lr = part_rate(model, part, lr, lr_by_part)
            decays = parameter.ndim > 1 and part != "markers"
            group = groups.setdefault(
                (part, decays),
                {"name": f"{part}{'' if decays else ', no decay'}", "params": [], "lr": part_lr,
                 "weight_decay": weight_decay if decays else 0.0},
            )  # fmt: skip
            group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(model: nn.Module, config: Mapping, plugins: Sequence[str] = ()) -> Optimizer:
    """Make the optimizer that `config` (the `optim` group) names, of torch or of the user's `plugins`.

    On CUDA it is torch's fused one, where there is one: it can be kept from a step without waiting for the GPU.
    """
    own = {key: value for key, value in config.items() if key not in OWN_OPTIM_KEYS}
    groups = parameter_groups(model, config["lr"], config["lr_by_part"], config["weight_decay"])
    target = {"_target_": own.pop("_target_"), "_partial_": True}
    make = build(target | own, plugins)
    if "fused" in signature(make).parameters and all(p.is_cuda for group in groups for p in group["params"]):
        own.setdefault("fused", True)
        make = build(target | own, plugins)
    return make(groups)


def step_if_finite(optimizer: LightningOptimizer | Optimizer, is_finite: Tensor) -> None:
    """Take a step, or leave weights and the optimizer's state as they are, to the bit; it counts as a step either way.

    Args:
        optimizer: Its fused form reads `is_finite` on the device; another one has it read first.
        is_finite: Whether the loss and the gradients are; a boolean on the device.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if getattr(inner, "_step_supports_amp_scaling", False):
        inner.grad_scale, inner.found_inf = None, (~is_finite).to(torch.float32)
        optimizer.step()
        del inner.grad_scale, inner.found_inf
    else:
        if not is_finite.item():
            optimizer.zero_grad()  # without gradients there is no step
        optimizer.step()


def warmup_steps(fraction: float, num_steps: int) -> int:
    """Return over how many steps the rate rises: a fraction of all steps, and at least `LEAST_WARMUP_STEPS`.

    A fraction of 0 is no warm-up. A run that is shorter than its warm-up ends before the rate is reached.
    """
    return max(round(fraction * num_steps), LEAST_WARMUP_STEPS) if fraction else 0


_SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    "linear": lambda x: 1 - x,
    "constant": lambda x: 1.0,
}


def build_schedule(optimizer: Optimizer, config: Mapping, num_steps: int, plugins: Sequence[str] = ()) -> LambdaLR:
    """Build the schedule: the rate rises linearly over `warmup_steps`, and then follows the shape of `optim.schedule`.

    A shape is a function of how much of the steps behind the warm-up is done, from 0 to 1, to a share of the rate. A
    resumed run asks it at the same steps, so it has no state to be kept.

    Args:
        optimizer: Its rates are the highest ones.
        config: The `optim` group: its `schedule` is a name, or names a class of the user's.
        num_steps: Optimizer steps of the run.
        plugins: The user's packages.
    """
    warmup = max(1, warmup_steps(config["warmup_fraction"], num_steps))
    chosen = config["schedule"]
    shape = _SHAPES[chosen] if isinstance(chosen, str) else build(chosen, plugins)

    def factor(step: int) -> float:
        return (step + 1) / warmup if step < warmup else shape(min(1.0, (step - warmup) / max(1, num_steps - warmup)))

    return LambdaLR(optimizer, factor)
