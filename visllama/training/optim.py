"""Build the optimizer of the trained tensors, and the schedule of its learning rates over optimizer steps.

A part is one of the model's: `vision_encoder`, `connector`, `language_model`, `markers` (the two embeddings around an
image) or `adapter` (LoRA).
"""

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
    """Return the factor by which `optim.lr` is multiplied for a part: the `lr_scale` of its class, or 1 without one.

    Args:
        model: The model.
        part: The name of the part, as "connector". For a name that no attribute of the model has, the result is 1.
    """
    return getattr(getattr(model, part, None), "lr_scale", 1.0)


def part_rate(model: nn.Module, part: str, lr: float, lr_by_part: Mapping[str, float | None]) -> float:
    """Return the learning rate of a part after the warm-up, which the schedule then lowers.

    Args:
        model: The model.
        part: The name of the part.
        lr: The value of `optim.lr`.
        lr_by_part: The value of `optim.lr_by_part`: rates by part. The part's rate there is returned as it is. If the
            part is not in it, or has None or 0, the result is `lr` times the part's `lr_scale`.
    """
    return lr_by_part.get(part) or lr * lr_scale(model, part)


def parameter_groups(
    model: nn.Module, lr: float, lr_by_part: Mapping[str, float | None], weight_decay: float
) -> list[dict]:
    """Return the trained parameters in groups, each of one part and either with or without weight decay.

    Parameters of two or more dimensions decay, except for the markers. Those that require no gradient are left out.

    Args:
        model: The model.
        lr: The value of `optim.lr`.
        lr_by_part: The value of `optim.lr_by_part`: the rates of parts by their names. A part that is not in it, or has
            None or 0 there, has `lr` times its own `lr_scale`; a name that no part has is ignored.
        weight_decay: The weight decay of the groups that decay.

    Returns:
        One dictionary for each group, as torch's optimizers take it: `name` ("connector" or "connector, no decay"),
        `params`, `lr` and `weight_decay`. The groups stand in the order of their first parameters in the model.
    """
    groups: dict[tuple[str, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue

        part = part_of(name)
        # Biases and the weights of norms have one dimension.
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
    """Build the optimizer of a model's trained parameters, in the groups of `parameter_groups`.

    If all of them are on CUDA and the class takes an argument `fused`, it is set to true where the config does not give
    it: a fused optimizer can leave out a step without waiting for the GPU.

    Args:
        model: The model; parameters that require no gradient are left out.
        config: The `optim` group: `_target_`, a class of torch or of the user's, with its arguments; and `lr`,
            `lr_by_part`, `weight_decay` and the other keys that visllama reads itself.
        plugins: The names of the user's packages, in which the class may be.

    Raises:
        ConfigError: If `_target_` is not allowed, or names no class.
    """
    groups = parameter_groups(model, config["lr"], config["lr_by_part"], config["weight_decay"])
    arguments = {key: value for key, value in config.items() if key not in OWN_OPTIM_KEYS}

    # `make` lacks only the parameters, and its signature shows whether the class has a fused form.
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
    """Take an optimizer step if `is_finite` is true; else leave weights and optimizer state as they are, to the bit.

    Lightning counts a step either way. If `is_finite` is false and the optimizer is not fused, gradients are removed.

    Args:
        optimizer: The optimizer. A fused one reads `is_finite` on the device; for any other the CPU waits for it.
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
    """Return the number of steps over which the learning rate rises at the start of a run.

    It may be more than `num_steps`: such a run ends before it reaches its full rate.

    Args:
        fraction: The value of `optim.warmup_fraction`: the fraction of all steps that is returned, but at least
            `LEAST_WARMUP_STEPS` (10). For 0 the result is 0: no warm-up.
        num_steps: The number of optimizer steps of the run.
    """
    if not fraction:
        return 0
    return max(round(fraction * num_steps), LEAST_WARMUP_STEPS)


_SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    "linear": lambda x: 1 - x,
    "constant": lambda x: 1.0,
}
"""Factors of the full learning rate, as functions of the fraction done (0 to 1) of the steps after the warm-up."""


def build_schedule(optimizer: Optimizer, config: Mapping, num_steps: int, plugins: Sequence[str] = ()) -> LambdaLR:
    """Build the schedule that multiplies the learning rates of an optimizer's groups, step by step.

    The factor rises linearly to 1 over `warmup_steps`, and then follows a shape: a function that gets the fraction (0
    to 1) of the steps after the warm-up that is done, and returns the factor. A shape has no state to be saved, since a
    resumed run calls it at the same steps.

    Args:
        optimizer: The optimizer, whose groups have their full rates. The rates of the first step are set at once.
        config: The `optim` group, of which `warmup_fraction` and `schedule` are read. `schedule` is "cosine" or
            "linear", which fall to 0, "constant", or a config node whose `_target_` makes a shape of the user's own.
        num_steps: The number of optimizer steps of the run.
        plugins: The names of the user's packages, in which that `_target_` may be.

    Returns:
        The schedule, whose `step()` has to be called after each optimizer step.

    Raises:
        KeyError: If `schedule` is another name.
        ConfigError: If the `_target_` of `schedule` is not allowed, or names no class.
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
