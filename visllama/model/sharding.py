"""Shard a model over ranks (FSDP2), convert its weights, and recompute activations in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint

from visllama.errors import ConfigError
from visllama.model.lora import is_adapter
from visllama.model.visllama import VisLlama, part_dtype, persistent_buffers

_R = TypeVar("_R")


def blocks(part: nn.Module) -> list[nn.Module]:
    """Return the blocks (layers) of a transformer in the order of its modules.

    A block is a module whose class is named in `_no_split_modules` of transformers' model. The list is empty if no
    module inside `part` has that attribute.
    """
    names: set[str] = set()
    for module in part.modules():
        class_names = cast("Iterable[str] | None", getattr(module, "_no_split_modules", None))
        names.update(class_names or ())
    return [module for module in part.modules() if type(module).__name__ in names]


def shard(model: VisLlama, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """Convert a model's weights to their dtypes and shard it over all ranks with FSDP, in place.

    All ranks have to call this together. Afterwards each rank keeps its slice of every parameter. FSDP gathers each
    block of the encoder and of the language model, and the connector, by itself. All other parameters, with the
    embeddings and the head, are gathered together (the root), since `VisLlama.forward` and `generate` use them outside
    the language model's own forward pass.

    Args:
        model: A model after `load_base_weights(dtype, as_stored=True)`: its weights are still mapped from their files,
            so that only one block at a time is copied into memory.
        mesh: The one-dimensional mesh of all ranks.
        dtype: Dtype of the frozen weights; weights that train become fp32 at least.

    Raises:
        ConfigError: If the language model does not name the classes of its blocks (see `blocks`).
    """
    if not blocks(model.language_model):
        raise ConfigError(
            f"trainer/strategy=fsdp: {type(model.language_model).__name__} names no _no_split_modules, at which it "
            f"would be sharded: choose trainer/strategy=ddp"
        )

    for part in ("vision_encoder", "language_model"):
        # FSDP takes an inner unit before the one that it lies in, and `modules()` names the outer one first.
        for unit in reversed(blocks(getattr(model, part))):
            _cast(unit, part_dtype(model, part, dtype))
            fully_shard(unit, mesh=mesh)

    # What lies outside the blocks is converted here.
    cast_weights(model, dtype)
    fully_shard(model.connector, mesh=mesh)
    fully_shard(model, mesh=mesh)

    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Each rank's loss is its part of one sum, so gradients are added and not averaged.
            module.set_gradient_divide_factor(1.0)
            # A sum is also all that gloo can reduce by.
            module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "generate")


def reshard(model: VisLlama) -> None:
    """Free the parameters that FSDP has gathered, so that each rank keeps its slices alone.

    After a forward pass, FSDP leaves the parameters of the root gathered. A model that is not sharded is left as it is.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def cast_weights(model: VisLlama, dtype: torch.dtype) -> None:
    """Convert the weights of a model to their dtypes in place, one tensor at a time.

    Parameters that are sharded already are left as they are. Connector and markers are converted only if `dtype` is
    fp64.

    Args:
        model: A model after `load_base_weights(dtype, as_stored=True)`, whose weights have the dtypes of their files.
        dtype: Dtype of the frozen weights; weights that train become fp32 at least.
    """
    for part in ("vision_encoder", "language_model"):
        _cast(getattr(model, part), part_dtype(model, part, dtype))
    if dtype == torch.float64:
        model.connector.double()
        model.markers.data = model.markers.data.double()


def _cast(unit: nn.Module, dtype: torch.dtype) -> None:
    """Convert a module's parameters and stored buffers to a dtype, but adapters to fp32 at least."""
    for name, parameter in unit.named_parameters():
        target_dtype = dtype
        if is_adapter(name):
            target_dtype = torch.promote_types(dtype, torch.float32)

        # A parameter with a mesh belongs to an inner unit, which was converted before it was sharded.
        is_sharded = hasattr(parameter, "device_mesh")
        if parameter.dtype != target_dtype and not is_sharded:
            parameter.data = parameter.data.to(target_dtype)

    persistent = persistent_buffers(unit)
    for name, buffer in unit.named_buffers():
        # A computed buffer keeps its dtype, as in `from_pretrained`: rounded to bf16, positions would be others.
        is_converted = name in persistent or dtype == torch.float64
        if buffer.is_floating_point() and is_converted:
            buffer.data = buffer.data.to(dtype)


def compute_again(model: VisLlama) -> None:
    """Turn on activation checkpointing for the language model's blocks, in place.

    Each block then keeps its input alone, and computes its activations again in the backward pass. A model whose blocks
    are not known (see `blocks`) is left as it is.

    Reference:
        Chen et al. 2016, arXiv:1604.06174.
    """
    for block in blocks(model.language_model):
        block.forward = _again(block.forward)


def _again(forward: Callable[..., _R]) -> Callable[..., _R]:
    """Return a block's forward method wrapped in a checkpoint, if gradients are recorded at the call."""

    def run(*arguments: Any, **named: Any) -> _R:
        # Without gradients there is no backward pass, and nothing to compute again.
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    return run
