"""GPUs, by what their makers' data sheets say."""

from __future__ import annotations

from typing import NamedTuple


class Card(NamedTuple):
    """A GPU.

    Attributes:
        memory_gib: What CUDA says there is, less than what it is sold by.
        half_tflops: Dense bf16 and fp16 with sums in fp32, 10^12 a second.
        single_tflops: fp32, without TF32: torch's default.
        double_tflops: fp64.
        memory_gb_s: Its own memory's bandwidth, 10^9 bytes a second.
        node_gb_s: To the other cards of a node, one way: NVLink, or PCIe where there is none.
    """

    memory_gib: float
    half_tflops: float
    single_tflops: float
    double_tflops: float
    memory_gb_s: float
    node_gb_s: float

    def flops(self, compute_bytes: int) -> float:
        """Return floating-point operations a second, at most, in numbers of this many bytes."""
        return 1e12 * {2: self.half_tflops, 4: self.single_tflops, 8: self.double_tflops}[compute_bytes]


_NAMES = {
    "NVIDIA A100-SXM4-40GB": "a100_40g",
    "NVIDIA A100-PCIE-40GB": "a100_40g",
    "NVIDIA A100-SXM4-80GB": "a100_80g",
    "NVIDIA A100 80GB PCIe": "a100_80g",
    "NVIDIA H100 80GB HBM3": "h100_80g",
    "NVIDIA H200": "h200_141g",
    "NVIDIA L40S": "l40s_48g",
    "NVIDIA GeForce RTX 4090": "rtx4090_24g",
}
"""CUDA's names of the cards; others of the same make (H100 PCIe, H100 NVL) are slower, and are not here."""
CARDS = {
    "a100_40g": Card(39.4, 312, 19.5, 19.5, 1555, 300),
    "a100_80g": Card(79.1, 312, 19.5, 19.5, 2039, 300),
    "h100_80g": Card(79.1, 989, 67, 67, 3350, 450),
    "h200_141g": Card(139.7, 989, 67, 67, 4800, 450),
    "l40s_48g": Card(44.4, 362, 91.6, 1.4, 864, 32),
    "rtx4090_24g": Card(23.5, 165, 82.6, 1.3, 1008, 32),
}


def find_card(device_name: str) -> Card | None:
    """Return the card of a name that CUDA gives; None where its data sheet is not here."""
    name = _NAMES.get(device_name)
    return None if name is None else CARDS[name]
