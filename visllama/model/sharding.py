"""A model in shards (FSDP2), and blocks that are computed again in the backward pass."""

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
    """Return a transformer's blocks; none where it does not name their classes.

    The classes are those that a model of transformers must not be split inside.
    """
    names: set[str] = set()
    for module in part.modules():
        class_names = cast("Iterable[str] | None", getattr(module, "_no_split_modules", None))
        names.update(class_names or ())
    return [module for module in part.modules() if type(module).__name__ in names]


def shard(model: VisLlama, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """Shard a model over a mesh, block by block, so that each rank keeps its part of every tensor.

    The blocks of both backbones and the connector are units, and the model itself is the one root. Embeddings and head
    lie with the root, since `VisLlama.forward` and `generate` use them outside the language model's own forward pass.

    Args:
        model: A model whose weights are mapped from their files (`load_base_weights(dtype, as_stored=True)`), so that
            only one block at a time is copied.
        mesh: The one-dimensional mesh of all ranks.
        dtype: Dtype of the frozen weights; what trains is fp32 at least.

    Raises:
        ConfigError: If the language model does not name the classes of its blocks.
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
    """Free the whole tensors on each rank, so that it keeps its part alone.

    After a forward pass, FSDP leaves the root whole.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def cast_weights(model: VisLlama, dtype: torch.dtype) -> None:
    """Convert the weights of a model that are still as their files store them, a tensor at a time.

    Args:
        model: A model after `load_base_weights(dtype, as_stored=True)`.
        dtype: Dtype of the frozen weights; what trains is fp32 at least.
    """
    for part in ("vision_encoder", "language_model"):
        _cast(getattr(model, part), part_dtype(model, part, dtype))
    if dtype == torch.float64:
        model.connector.double()
        model.markers.data = model.markers.data.double()


def _cast(unit: nn.Module, dtype: torch.dtype) -> None:
    for name, parameter in unit.named_parameters():
        target_dtype = torch.promote_types(dtype, torch.float32) if is_adapter(name) else dtype

        # A parameter with a mesh belongs to an inner unit, which was converted before it was sharded.
        is_sharded = hasattr(parameter, "device_mesh")
        if parameter.dtype != target_dtype and not is_sharded:
            parameter.data = parameter.data.to(target_dtype)

    persistent = persistent_buffers(unit)
    for name, buffer in unit.named_buffers():
        # A computed buffer keeps its dtype, as in `from_pretrained`: rounded to bf16, positions would be others.
        if buffer.is_floating_point() and (name in persistent or dtype == torch.float64):
            buffer.data = buffer.data.to(dtype)


def compute_again(model: VisLlama) -> None:
    """Make the language model's blocks compute their activations again in the backward pass instead of keeping them.

    Reference:
        Chen et al. 2016, arXiv:1604.06174.
    """
    for block in blocks(model.language_model):
        block.forward = _again(block.forward)


def _again(forward: Callable[..., _R]) -> Callable[..., _R]:
    def run(*arguments: Any, **named: Any) -> _R:
        # Without gradients there is no backward pass, and nothing to compute again.
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    return run
