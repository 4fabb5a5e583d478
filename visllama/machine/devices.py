"""Which device, how many ranks and what precision a run uses when it is not told."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence

import torch

from visllama.errors import ConfigError


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
    return {"bf": torch.bfloat16, "16": torch.float16, "64": torch.float64}.get(precision[:2], torch.float32)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory that was held at once: tensors on a CUDA device, elsewhere the whole of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # Linux counts in KiB


def started_ranks() -> tuple[str, int, int] | None:
    """Return who has started this process as one rank of several, on how many nodes, and how many on each.

    None if nobody has: then the ranks of this node are started from here.
    """
    found = os.environ
    if "LOCAL_WORLD_SIZE" in found and "TORCHELASTIC_RUN_ID" in found:
        per_node = int(found["LOCAL_WORLD_SIZE"])
        return "torchrun", int(found["WORLD_SIZE"]) // per_node, per_node
    if "SLURM_NTASKS" in found and found.get("SLURM_JOB_NAME") not in ("bash", "interactive"):  # as Lightning tells it
        nodes = int(found.get("SLURM_STEP_NUM_NODES") or found.get("SLURM_NNODES") or 1)
        return "srun", nodes, int(found["SLURM_NTASKS"]) // nodes
    return None


def count_ranks(num_nodes: int | str, devices: int | str | Sequence[int], accelerator: str) -> tuple[int, int]:
    """Return the number of nodes and of ranks on each, one a device.

    Args:
        num_nodes: `trainer.num_nodes`: a number, or "auto".
        devices: `trainer.devices`: a number, indices, or "auto".
        accelerator: `trainer.accelerator`.

    Raises:
        ConfigError: If the config names other numbers than those that were started.
    """
    started = started_ranks()
    who, *found = started or (None, 1, None)
    if devices in ("auto", -1):
        there = torch.cuda.device_count() if find_device(accelerator).type == "cuda" else 1
        num_devices = found[1] or there
    elif isinstance(devices, Sequence):
        num_devices = len(devices)
    else:
        num_devices = devices
    nodes = found[0] if num_nodes == "auto" else num_nodes
    if started and [nodes, num_devices] != found:
        raise ConfigError(
            f"trainer.num_nodes={num_nodes} and trainer.devices={devices} mean {nodes} x {num_devices} ranks, and "
            f"{who} has started {found[0]} x {found[1]}: give it these numbers, or leave both at auto"
        )
    return nodes, num_devices
