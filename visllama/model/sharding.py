"""A model in shards (FSDP2), and blocks that are computed again on the way back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint

from visllama.errors import ConfigError
from visllama.model.lora import is_adapter
from visllama.model.visllama import VisLlama, part_dtype, persistent_buffers


def blocks(part: nn.Module) -> list[nn.Module]:
    """Return a transformer's blocks, by the names that transformers splits it at; none where it names none."""
    names = {n for m in part.modules() for n in getattr(m, "_no_split_modules", None) or ()}
    return [module for module in part.modules() if type(module).__name__ in names]


def shard(model: VisLlama, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """Shard a model over a mesh, block by block: each rank keeps its part of every tensor.

    The blocks of both backbones and the connector are units, and the model itself is the one root: embeddings and head
    lie with it, since `VisLlama.forward` and `generate` use them outside the language model's own.

    Args:
        model: With its weights as `load_base_weights("auto")` maps them: what is copied is a block at a time.
        mesh: Of all ranks, one-dimensional.
        dtype: Of the frozen weights; what trains is fp32 at least.

    Raises:
        ConfigError: If the language model names no blocks.
    """
    found = blocks(model.language_model)
    if not found:
        raise ConfigError(
            f"trainer/strategy=fsdp: {type(model.language_model).__name__} names no _no_split_modules, at which it "
            f"would be sharded: choose trainer/strategy=ddp"
        )
    for part in ("vision_encoder", "language_model"):
        for unit in reversed(blocks(getattr(model, part))):  # one that lies in another comes before it
            _cast(unit, part_dtype(model, part, dtype))
            fully_shard(unit, mesh=mesh)
    cast(model, dtype)  # what is outside the blocks
    fully_shard(model.connector, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # each rank's loss is its part of one sum,
            module.set_force_sum_reduction_for_comms(True)  # and a sum is all that gloo can
    register_fsdp_forward_method(model, "generate")


def reshard(model: VisLlama) -> None:
    """Let each rank keep its part of every tensor alone: behind a forward pass the root stays whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def cast(model: VisLlama, dtype: torch.dtype) -> None:
    """Convert a model whose weights are as they are stored, a tensor at a time.

    Args:
        model: As `load_base_weights(dtype, as_stored=True)` leaves it.
        dtype: Of the frozen weights; what trains is fp32 at least.
    """
    for part in ("vision_encoder", "language_model"):
        _cast(getattr(model, part), part_dtype(model, part, dtype))
    if dtype == torch.float64:
        model.connector.double()
        model.markers.data = model.markers.data.double()


def _cast(unit: nn.Module, dtype: torch.dtype) -> None:
    for name, parameter in unit.named_parameters():
        wanted = torch.promote_types(dtype, torch.float32) if is_adapter(name) else dtype
        if parameter.dtype != wanted and not hasattr(parameter, "device_mesh"):  # of a unit inside: done already
            parameter.data = parameter.data.to(wanted)

    persistent = persistent_buffers(unit)
    for name, buffer in unit.named_buffers():
        # One that is computed keeps its own, as in `from_pretrained`: positions in bf16 would be others.
        if buffer.is_floating_point() and (name in persistent or dtype == torch.float64):
            buffer.data = buffer.data.to(dtype)


def compute_again(model: VisLlama) -> None:
    """Keep no activations inside the language model's blocks: each is computed again when its gradients are due.

    Reference:
        Chen et al. 2016, arXiv:1604.06174.
    """
    for block in blocks(model.language_model):
        block.forward = _again(block.forward)


def _again(forward: Callable) -> Callable:
    def run(*arguments, **named):
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    return run
