"""What of a run lies in tensors: taken from model and optimizer by name, and put back where the ranks want it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.optim import Optimizer

from visllama.config import ConfigError

_NOT_STATE = ("params", "fused", "foreach", "capturable")
"""Of an optimizer's groups: how it computes, which a resumed run may do otherwise."""


def state_of(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict]]:
    """Give the trained tensors and the optimizer's state by name, as each rank has them, and its groups' settings."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"optimizer/{key}/{names[id(parameter)]}"] = torch.as_tensor(value)
    groups = [{k: v for k, v in group.items() if k not in _NOT_STATE} for group in optimizer.param_groups]
    return tensors, groups


def read_tensors(
    path: Path, model: nn.Module, optimizer: Optimizer, groups: list[dict], group: dist.ProcessGroup | None = None
) -> None:
    """Read tensors into a model and its optimizer, each rank what it has of them.

    Raises:
        ConfigError: If the trained tensors are not this model's, naming some.
    """
    reader = HuggingFaceStorageReader(str(path))
    stored = reader.read_metadata().state_dict_metadata
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = {name: tuple(of.size) for name, of in stored.items() if not name.startswith("optimizer/")}
    own = {name: tuple(p.shape) for name, p in parameters.items()}
    if found != own:
        differing = sorted(name for name in found.keys() | own.keys() if found.get(name) != own.get(name))
        raise ConfigError(
            f"resume: the checkpoint's trained tensors are not this model's: {len(differing)} differ: "
            f"{', '.join(differing[:3])}"
        )
    tensors = {name: p.detach() for name, p in parameters.items()}
    for name, of in stored.items():
        if name.startswith("optimizer/"):
            _, key, owner = name.split("/", 2)
            like = parameters[owner]
            dtype = of.properties.dtype
            value = (
                torch.zeros_like(like, dtype=dtype, requires_grad=False)
                if of.size == like.shape
                else torch.zeros(of.size, dtype=dtype, device=like.device if _is_fused(optimizer) else "cpu")
            )
            optimizer.state[like][key] = tensors[name] = value
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), process_group=group, no_dist=group is None)
    for written, group_of in zip(groups, optimizer.param_groups, strict=True):
        group_of.update(written)


def _is_fused(optimizer: Optimizer) -> bool:
    return any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
