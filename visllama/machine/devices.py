"""Which device, how many ranks and what precision a run uses when it is not told."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch

from visllama.errors import ConfigError


def find_device(accelerator: str) -> torch.device:
    """Give the device of a Lightning accelerator's name; "auto" is cuda, else mps, else cpu."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def find_precision(trainer: Mapping) -> str:
    """Return the name of the precision; "auto" is bf16-mixed on cuda, else 32-true.

    It names the dtype of frozen weights. What trains is fp32 under all of them, and fp64 under 64-true; bf16-mixed
    computes in bf16 (autocast), and the others in the dtype of the weights.
    """
    if trainer["precision"] != "auto":
        return str(trainer["precision"])
    return "bf16-mixed" if find_device(trainer["accelerator"]).type == "cuda" else "32-true"


def frozen_dtype(precision: str) -> torch.dtype:
    """Give the dtype in which frozen weights are loaded under a precision."""
    return {"bf": torch.bfloat16, "16": torch.float16, "64": torch.float64}.get(precision[:2], torch.float32)


def started_ranks() -> tuple[str, int, int] | None:
    """Give who has started this process as one rank of several, on how many nodes, and how many on each.

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


def count_ranks(trainer: Mapping) -> tuple[int, int]:
    """Give the number of nodes and of ranks on each, one a device.

    Raises:
        ConfigError: If the config names other numbers than those that were started.
    """
    started = started_ranks()
    who, *found = started or (None, 1, None)
    devices = trainer["devices"]
    if devices in ("auto", -1):
        there = torch.cuda.device_count() if find_device(trainer["accelerator"]).type == "cuda" else 1
        devices = found[1] or there
    elif isinstance(devices, Sequence):
        devices = len(devices)
    nodes = found[0] if trainer["num_nodes"] == "auto" else trainer["num_nodes"]
    if started and [nodes, devices] != found:
        raise ConfigError(
            f"trainer.num_nodes={trainer['num_nodes']} and trainer.devices={trainer['devices']} mean {nodes} x "
            f"{devices} ranks, and {who} has started {found[0]} x {found[1]}: give it these numbers, or leave both at "
            f"auto"
        )
    return nodes, devices
