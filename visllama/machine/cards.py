"""Sizes and peak rates of known GPUs, from their makers' data sheets."""

from __future__ import annotations

from typing import NamedTuple


class Card(NamedTuple):
    """The memory and the peak rates of one model of GPU.

    Attributes:
        memory_gib: Memory that CUDA reports, in GiB; it is less than the size in the card's name.
        half_tflops: Dense bf16 and fp16 operations with sums in fp32, 10^12 a second.
        single_tflops: fp32 operations without TF32, which is torch's default, 10^12 a second.
        double_tflops: fp64 operations, 10^12 a second.
        memory_gb_s: Bandwidth of the card's memory, 10^9 bytes a second.
        node_gb_s: Bandwidth to the other cards of a node, one way, 10^9 bytes a second: NVLink, or PCIe without it.
    """

    memory_gib: float
    half_tflops: float
    single_tflops: float
    double_tflops: float
    memory_gb_s: float
    node_gb_s: float

    def flops(self, compute_bytes: int) -> float:
        """Return the peak number of floating-point operations a second, as a plain number and not in tera.

        Args:
            compute_bytes: The size in bytes of the numbers that are multiplied: 2 (bf16, fp16), 4 (fp32) or 8 (fp64).

        Raises:
            KeyError: If it is another size.
        """
        tflops_by_bytes = {2: self.half_tflops, 4: self.single_tflops, 8: self.double_tflops}
        return 1e12 * tflops_by_bytes[compute_bytes]


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
"""Key of `CARDS` by the device name that CUDA reports. Slower H100s of other names (PCIe, NVL) are left out."""
CARDS = {
    "a100_40g": Card(39.4, 312, 19.5, 19.5, 1555, 300),
    "a100_80g": Card(79.1, 312, 19.5, 19.5, 2039, 300),
    "h100_80g": Card(79.1, 989, 67, 67, 3350, 450),
    "h200_141g": Card(139.7, 989, 67, 67, 4800, 450),
    "l40s_48g": Card(44.4, 362, 91.6, 1.4, 864, 32),
    "rtx4090_24g": Card(23.5, 165, 82.6, 1.3, 1008, 32),
}
"""The known GPUs, by the name that `visllama plan gpu=NAME` takes."""


def find_card(device_name: str) -> Card | None:
    """Return the data of a GPU; None if it is not one of `CARDS`.

    Args:
        device_name: The exact name that CUDA reports (`torch.cuda.get_device_name`), as "NVIDIA H200".
    """
    name = _NAMES.get(device_name)
    if name is None:
        return None
    return CARDS[name]
