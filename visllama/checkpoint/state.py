"""What of a run lies in tensors: taken from model and optimizer by name, and put back where the ranks want it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.optim import Optimizer

from visllama.errors import ConfigError
from visllama.model.visllama import VisLlama, trained_buffers

_NOT_STATE = ("params", "fused", "foreach", "capturable")
"""Of an optimizer's groups: how it computes, which a resumed run may do otherwise."""


def state_of(model: VisLlama, optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict]]:
    """Return what training changes, by name and as each rank has it, and the settings of the optimizer's groups.

    These are the trained parameters, the persistent buffers of the parts that learn, and the optimizer's state.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = _trained(model)
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"optimizer/{key}/{names[id(parameter)]}"] = torch.as_tensor(value)
    groups = [{k: v for k, v in group.items() if k not in _NOT_STATE} for group in optimizer.param_groups]
    return tensors, groups


def _trained(model: VisLlama) -> dict[str, Tensor]:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {name: tensor.detach() for name, tensor in (parameters | trained_buffers(model)).items()}


def read_tensors(
    path: Path, model: VisLlama, optimizer: Optimizer, groups: list[dict], group: dist.ProcessGroup | None = None
) -> None:
    """Read tensors into a model and its optimizer, each rank what it has of them.

    Raises:
        ConfigError: If the trained tensors are not this model's, naming some.
    """
    reader = HuggingFaceStorageReader(str(path))
    stored = reader.read_metadata().state_dict_metadata
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = {name: tuple(of.size) for name, of in stored.items() if not name.startswith("optimizer/")}
    tensors = _trained(model)
    own = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != own:
        differing = sorted(name for name in found.keys() | own.keys() if found.get(name) != own.get(name))
        raise ConfigError(
            f"resume: the checkpoint's trained tensors are not this model's: {len(differing)} differ: "
            f"{', '.join(differing[:3])}"
        )
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
