"""Which device, how many ranks and what precision a run uses when it is not told."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch

from visllama.errors import ConfigError

_FROZEN_DTYPES = {"bf": torch.bfloat16, "16": torch.float16, "64": torch.float64}
"""Dtype of frozen weights by the first two characters of a precision's name; under any other name it is fp32."""


class StartedRanks(NamedTuple):
    """The ranks that a launcher has started.

    Attributes:
        launcher: The name of the program, "torchrun" or "srun".
        num_nodes: The number of nodes.
        per_node: The number of ranks on each node.
    """

    launcher: str
    num_nodes: int
    per_node: int


def find_device(accelerator: str) -> torch.device:
    """Return the device of a Lightning accelerator's name; "auto" is cuda, else mps, else cpu."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def find_precision(precision: str, accelerator: str) -> str:
    """Return the name of the precision; "auto" is bf16-mixed on cuda, else 32-true.

    It names the dtype of frozen weights. What trains is fp32 under all of them, and fp64 under 64-true; bf16-mixed
    computes in bf16 (autocast), and the others in the dtype of the weights.
    """
    if precision != "auto":
        return precision
    return "bf16-mixed" if find_device(accelerator).type == "cuda" else "32-true"


def frozen_dtype(precision: str) -> torch.dtype:
    """Return the dtype in which frozen weights are loaded under a precision."""
    return _FROZEN_DTYPES.get(precision[:2], torch.float32)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory that was held at once: tensors on a CUDA device, elsewhere the whole of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":
        return peak
    # Linux counts in KiB, macOS in bytes.
    return 1024 * peak


def started_ranks() -> StartedRanks | None:
    """Return the ranks that torchrun or srun has started, this process among them.

    None if neither has: then this process starts the other ranks of its node.
    """
    environment = os.environ
    if "LOCAL_WORLD_SIZE" in environment and "TORCHELASTIC_RUN_ID" in environment:
        per_node = int(environment["LOCAL_WORLD_SIZE"])
        num_nodes = int(environment["WORLD_SIZE"]) // per_node
        return StartedRanks("torchrun", num_nodes, per_node)

    # In an interactive allocation SLURM sets its variables too, but has started no ranks. Lightning knows one by
    # these two job names.
    is_interactive = environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_NTASKS" in environment and not is_interactive:
        num_nodes = int(environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES") or 1)
        per_node = int(environment["SLURM_NTASKS"]) // num_nodes
        return StartedRanks("srun", num_nodes, per_node)

    return None


def count_ranks(num_nodes: int | str, devices: int | str | Sequence[int], accelerator: str) -> tuple[int, int]:
    """Return the number of nodes, and the number of ranks on each: one a device.

    Args:
        num_nodes: The value of `trainer.num_nodes`: a number, or "auto".
        devices: The value of `trainer.devices`: a number, indices, or "auto".
        accelerator: The value of `trainer.accelerator`.

    Raises:
        ConfigError: If the config names other numbers than those that the launcher has started.
    """
    started = started_ranks()

    if devices in ("auto", -1):
        num_devices = started.per_node if started else _count_devices(accelerator)
    elif isinstance(devices, int):
        num_devices = devices
    else:
        num_devices = len(devices)

    started_nodes = started.num_nodes if started else 1
    nodes = num_nodes if isinstance(num_nodes, int) else started_nodes

    if started and (nodes, num_devices) != (started.num_nodes, started.per_node):
        raise ConfigError(
            f"trainer.num_nodes={num_nodes} and trainer.devices={devices} mean {nodes} x {num_devices} ranks, and "
            f"{started.launcher} has started {started.num_nodes} x {started.per_node}: give it these numbers, or leave "
            f"both at auto"
        )
    return nodes, num_devices


def _count_devices(accelerator: str) -> int:
    """Return the number of devices of this machine that ranks can have: all CUDA devices, else one."""
    if find_device(accelerator).type == "cuda":
        return torch.cuda.device_count()
    return 1
