"""Collect the tensors that training changes from a model and its optimizer, and read them back from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from jaxtyping import Shaped
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.optim import Optimizer

from visllama.errors import ConfigError
from visllama.model.visllama import VisLlama, trained_buffers

_NOT_STATE = ("params", "fused", "foreach", "capturable")
"""Keys of an optimizer's groups that only say how it computes: a resumed run may compute otherwise."""
_OF_OPTIMIZER = "optimizer/"
"""Beginning of the names of the optimizer's tensors: `optimizer/KEY/PARAMETER`."""


def state_of(model: VisLlama, optimizer: Optimizer) -> tuple[dict[str, Shaped[Tensor, "*_"]], list[dict]]:
    """Return the tensors that training changes, and the settings of the optimizer's groups, for a checkpoint.

    The tensors are those of this rank and are not copied: under sharding each is this rank's part.

    Args:
        model: The model.
        optimizer: The optimizer of the model's trained parameters.

    Returns:
        The tensors of any shape, by name: the trained parameters, the persistent buffers of the trained parts, and each
        value of the optimizer's state as `optimizer/KEY/PARAMETER`. And for each of the optimizer's groups, in their
        order, a dictionary of its settings, such as `lr`, without its parameters.
    """
    # The optimizer knows parameters by identity, a checkpoint by name.
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    tensors = _trained(model)
    for parameter, state in optimizer.state.items():
        parameter_name = names[id(parameter)]
        for key, value in state.items():
            name = f"{_OF_OPTIMIZER}{key}/{parameter_name}"
            tensors[name] = torch.as_tensor(value)

    groups = []
    for group in optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key not in _NOT_STATE}
        groups.append(settings)

    return tensors, groups


def _trained_parameters(model: VisLlama) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _trained(model: VisLlama) -> dict[str, Tensor]:
    """Return the trained parameters and the persistent buffers of the trained parts, by name."""
    tensors = _trained_parameters(model)
    tensors |= trained_buffers(model)
    return {name: tensor.detach() for name, tensor in tensors.items()}


def read_tensors(
    path: Path, model: VisLlama, optimizer: Optimizer, groups: list[dict], group: dist.ProcessGroup | None = None
) -> None:
    """Read a checkpoint's tensors into a model and its optimizer, in place; each rank reads the parts that it holds.

    The checkpoint may have been written by another number of ranks. All ranks of `group` have to call this together.

    Args:
        path: The folder of the checkpoint.
        model: The model. Its trained parameters, and the persistent buffers of the trained parts, are overwritten.
        optimizer: The optimizer of the model's trained parameters. Its state and the settings of its groups are
            overwritten.
        groups: The settings of the optimizer's groups, as `state_of` returned them when the checkpoint was written.
        group: The ranks that read together; None is this process alone.

    Raises:
        ConfigError: If names or shapes of the trained tensors are not this model's; the message names up to three.
        ValueError: If `groups` has more or fewer groups than the optimizer.
    """
    reader = HuggingFaceStorageReader(str(path))

    # The files hold tensors alone, so torch's metadata for values that are none cannot occur.
    metadata = cast("dict[str, TensorStorageMetadata]", reader.read_metadata().state_dict_metadata)

    stored_state = {}
    stored_tensors = {}
    for name, stored in metadata.items():
        if name.startswith(_OF_OPTIMIZER):
            stored_state[name] = stored
        else:
            stored_tensors[name] = stored

    tensors = _trained(model)
    _check_shapes(stored_tensors, tensors)

    # Most optimizers have no state before their first step, so that there is nothing yet to read into.
    parameters = _trained_parameters(model)
    for name, stored in stored_state.items():
        _, key, parameter_name = name.split("/", 2)
        parameter = parameters[parameter_name]
        value = _empty_state(stored, parameter, optimizer)

        optimizer.state[parameter][key] = value
        tensors[name] = value

    # This writes into the very tensors of the model and of the optimizer's state.
    tensor_reader = HuggingFaceStorageReader(str(path))
    dcp.load(tensors, storage_reader=tensor_reader, process_group=group, no_dist=group is None)

    for own_group, stored_group in zip(optimizer.param_groups, groups, strict=True):
        own_group.update(stored_group)


def _check_shapes(stored: Mapping[str, TensorStorageMetadata], tensors: Mapping[str, Tensor]) -> None:
    """Check that a checkpoint has the trained tensors of a model, each with its shape.

    Raises:
        ConfigError: If names or shapes differ.
    """
    stored_shapes = {name: tuple(metadata.size) for name, metadata in stored.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    names = stored_shapes.keys() | shapes.keys()
    differing = [name for name in names if stored_shapes.get(name) != shapes.get(name)]
    if not differing:
        return

    first_names = ", ".join(sorted(differing)[:3])
    raise ConfigError(
        f"resume: the checkpoint's trained tensors are not this model's: {len(differing)} differ: {first_names}"
    )


def _empty_state(stored: TensorStorageMetadata, parameter: Tensor, optimizer: Optimizer) -> Tensor:
    """Return zeros to read a value of the optimizer's state into, on the device where the optimizer would keep it.

    Args:
        stored: The shape and dtype of the value in the checkpoint.
        parameter: The parameter that the value belongs to.
        optimizer: The optimizer.
    """
    dtype = stored.properties.dtype
    # A value of the parameter's shape is cut over the ranks as the parameter is.
    if stored.size == parameter.shape:
        return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)

    # A count of steps lies on the CPU, unless the kernel reads it.
    device = parameter.device if _is_fused(optimizer) else "cpu"
    return torch.zeros(stored.size, dtype=dtype, device=device)


def _is_fused(optimizer: Optimizer) -> bool:
    """Return whether a kernel on the GPU reads the optimizer's count of steps."""
    groups = optimizer.param_groups
    return any(group.get("fused") or group.get("capturable") for group in groups)
