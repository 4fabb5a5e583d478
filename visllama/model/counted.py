"""What a connector keeps for its backward pass and computes, counted by a run on tensors without numbers."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


class Connector(NamedTuple):
    """Memory and arithmetic of a connector with fp32 weights; the weights themselves are not counted.

    Attributes:
        kept_bytes: Bytes that the forward pass on one image keeps for the backward pass, without autocast.
        kept_bytes_mixed: Bytes that the forward pass on one image keeps under bf16 autocast.
        copied_bytes_mixed: Bytes of the bf16 copies of weights that autocast keeps; they do not depend on the number
            of images.
        flops: Floating-point operations of one image's forward pass.
    """

    kept_bytes: int
    kept_bytes_mixed: int
    copied_bytes_mixed: int
    flops: int


def count_connector(connector: nn.Module, shape: tuple[int, ...]) -> Connector:
    """Count what a connector needs for one image: bytes kept for the backward pass, operations of the forward pass.

    The connector may be the user's own, for which no formula is known. It is therefore run on two and on three images
    of tensors that have shapes and no numbers (fake tensors), and the difference is what one image needs.

    Args:
        connector: A connector on any device, also the meta device. Its tensors are not read and not changed.
        shape: Shape of one image's features: `(Dv,)` for pooled features, `(P, Dv)` for patches.
    """
    two = (2, *shape)
    three = (3, *shape)
    kept_two, _ = _run(connector, two, mixed=False)
    kept_three, _ = _run(connector, three, mixed=False)
    mixed_two, flops_two = _run(connector, two, mixed=True)
    mixed_three, flops_three = _run(connector, three, mixed=True)

    mixed_one = mixed_three - mixed_two
    return Connector(
        kept_bytes=kept_three - kept_two,
        kept_bytes_mixed=mixed_one,
        copied_bytes_mixed=mixed_two - 2 * mixed_one,
        flops=flops_three - flops_two,
    )


def _run(connector: nn.Module, shape: tuple[int, ...], mixed: bool) -> tuple[int, int]:
    """Return the bytes that a forward pass keeps beside the weights, and its floating-point operations.

    Args:
        connector: The connector.
        shape: Shape of the features of all images.
        mixed: Whether to run under bf16 autocast.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    # Shapes that are said to lie on the CPU: autocast knows no meta device.
    with FakeTensorMode():
        tensors: dict[str, Tensor] = {}
        for name, parameter in connector.named_parameters():
            tensors[name] = nn.Parameter(torch.empty(parameter.shape))
        for name, buffer in connector.named_buffers():
            tensors[name] = torch.empty(buffer.shape, dtype=buffer.dtype)

        features = torch.empty(shape)
        with (
            warnings.catch_warnings(),
            torch.autocast("cpu", torch.bfloat16, mixed, cache_enabled=False),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            FlopCounterMode(display=False) as flop_counter,
        ):
            # A module's warning that it runs slowly means nothing where nothing is computed.
            warnings.simplefilter("ignore")
            functional_call(connector, tensors, (features,))

        # The weights themselves are counted elsewhere; only what is kept beside them counts here.
        weights = {tensor.untyped_storage()._cdata for tensor in tensors.values()}
        num_bytes = sum(storage.nbytes() for key, storage in kept.items() if key not in weights)
    return num_bytes, flop_counter.get_total_flops()
