"""What a connector keeps and computes, counted on tensors that hold no numbers."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


class Connector(NamedTuple):
    """What the connector does with images, in fp32.

    Attributes:
        kept_bytes: Kept for the backward pass of one image.
        kept_bytes_mixed: Likewise under autocast,
        copied_bytes_mixed: which keeps half-precision copies of weights too, however many images there are.
        flops: Of one image's forward pass.
    """

    kept_bytes: int
    kept_bytes_mixed: int
    copied_bytes_mixed: int
    flops: int


def count_connector(connector: nn.Module, shape: tuple[int, ...]) -> Connector:
    """Run a connector on two images and on three that hold no numbers: the difference is what one needs.

    Args:
        connector: On the meta device, say; it may be the user's own, of which no formula is known.
        shape: Of one image's features.
    """
    (plain, _), (plain_more, _) = (_run(connector, (n, *shape), mixed=False) for n in (2, 3))
    (mixed, flops), (mixed_more, flops_more) = (_run(connector, (n, *shape), mixed=True) for n in (2, 3))
    of_image = mixed_more - mixed
    return Connector(plain_more - plain, of_image, mixed - 2 * of_image, flops_more - flops)


def _run(connector: nn.Module, shape: tuple[int, ...], mixed: bool) -> tuple[int, int]:
    """Return the bytes that a forward pass keeps beside the weights, and its floating-point operations."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    # Shapes that are said to lie on the CPU: autocast knows no meta device.
    with FakeTensorMode():
        named = {name: nn.Parameter(torch.empty(p.shape)) for name, p in connector.named_parameters()}
        named |= {name: torch.empty(b.shape, dtype=b.dtype) for name, b in connector.named_buffers()}
        features = torch.empty(shape)
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with (
            warnings.catch_warnings(),
            torch.autocast("cpu", torch.bfloat16, mixed, cache_enabled=False),
            hooks,
            FlopCounterMode(display=False) as counted,
        ):
            warnings.simplefilter("ignore")  # what a module says of a slow way means nothing where nothing is computed
            functional_call(connector, named, (features,))
        own = {tensor.untyped_storage()._cdata for tensor in named.values()}
        total = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
    return total, counted.get_total_flops()
