"""Keep the buffers of trained parts the same on all ranks, and restore them after a step that was not taken.

Such a buffer is one of BatchNorm's statistics, or a counter. A rank's forward passes change its own copy, one
micro-batch at a time. A step is not taken if its loss or gradients are not finite.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from jaxtyping import Bool, Shaped
from torch import Tensor

from visllama.model.visllama import VisLlama, trained_buffers


def copy_buffers(model: VisLlama) -> dict[str, Shaped[Tensor, "*_"]]:
    """Return copies of the buffers of the model's trained parts that a checkpoint holds, by name, on their devices.

    The buffers may have any shapes and dtypes.
    """
    buffers = trained_buffers(model)
    return {name: buffer.clone() for name, buffer in buffers.items()}


@torch.no_grad()
def settle_buffers(
    model: VisLlama,
    before: Mapping[str, Shaped[Tensor, "*_"]],
    is_finite: Bool[Tensor, ""],
    num_ranks: int,
) -> None:
    """Set the buffers of a model's trained parts, in place, to the same values on all ranks.

    If the step was taken, these are the first rank's values after the step's forward passes; if not, they are the first
    rank's values in `before`. All ranks have to call this together.

    Args:
        model: The model after its forward passes of this step.
        before: The result of `copy_buffers` at the start of the step.
        is_finite: Whether the step was taken: a boolean, the same on all ranks.
        num_ranks: The number of ranks.
    """
    buffers = trained_buffers(model)
    for name, buffer in buffers.items():
        # A choice on the device: an `if` would wait for the GPU.
        buffer.copy_(torch.where(is_finite, buffer, before[name]))

    if buffers and num_ranks > 1:
        _broadcast(list(buffers.values()))


def _broadcast(tensors: list[Tensor]) -> None:
    """Send the first rank's values to all ranks, whatever their dtypes, in one message."""
    as_bytes = [tensor.reshape(-1).view(torch.uint8) for tensor in tensors]
    message = torch.cat(as_bytes)
    dist.broadcast(message, src=0)

    sizes = [tensor.nbytes for tensor in tensors]
    parts = message.split(sizes)
    for tensor, part in zip(tensors, parts, strict=True):
        # A part of the message may begin at any byte, and a view of a wider dtype may not.
        aligned = part.clone()
        values = aligned.view(tensor.dtype).view(tensor.shape)
        tensor.copy_(values)
