"""Buffers that training changes beside the parameters: the same on all ranks after each step, and as before a bad one.

BatchNorm's statistics are such, or a counter. A rank's forward passes change its own, one micro-batch at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from visllama.model.visllama import VisLlama, trained_buffers


def copy_buffers(model: VisLlama) -> dict[str, Tensor]:
    """Return copies of the trained parts' persistent buffers, by name."""
    return {name: buffer.clone() for name, buffer in trained_buffers(model).items()}


@torch.no_grad()
def settle_buffers(model: VisLlama, before: Mapping[str, Tensor], is_finite: Tensor, num_ranks: int) -> None:
    """Take the first rank's buffers on all ranks, or, if the step was not taken, those of before it.

    Args:
        model: Its forward passes of this step are over.
        before: `copy_buffers` at the step's start.
        is_finite: Whether the step was taken; the same on all ranks.
        num_ranks: All of them call it together.
    """
    buffers = trained_buffers(model)
    for name, buffer in buffers.items():
        buffer.copy_(torch.where(is_finite, buffer, before[name]))
    if buffers and num_ranks > 1:
        _broadcast(list(buffers.values()))


def _broadcast(tensors: list[Tensor]) -> None:
    """Send the first rank's values to all, whatever their dtypes, in one message."""
    sizes = [tensor.nbytes for tensor in tensors]
    message = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors])
    dist.broadcast(message, src=0)

    for tensor, part in zip(tensors, message.split(sizes), strict=True):
        aligned = part.clone()
        tensor.copy_(aligned.view(tensor.dtype).view(tensor.shape))
