"""Find the device, the precision and the number of ranks (processes, one a device) where a config says "auto"."""

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
    """The number of ranks (processes, one for each device) that a launcher has started before this program ran.

    Attributes:
        launcher: The name of the program, "torchrun" or "srun".
        num_nodes: The number of nodes.
        per_node: The number of ranks on each node.
    """

    launcher: str
    num_nodes: int
    per_node: int


def find_device(accelerator: str) -> torch.device:
    """Return the torch device, without an index, that `trainer.accelerator` means on this machine.

    Args:
        accelerator: "auto" and "gpu" mean cuda if it is available, else mps, else cpu. "cuda" and "mps" mean that
            device if it is available, else cpu. Any other text means cpu.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def find_precision(precision: str, accelerator: str) -> str:
    """Return the precision that `trainer.precision` means here: a name as it is, and for "auto" the device's default.

    The default is "bf16-mixed" if `find_device(accelerator)` is cuda, else "32-true". `frozen_dtype` returns the dtype
    of frozen weights that a name stands for. Trained weights are fp32, or fp64 under "64-true". "bf16-mixed" computes
    in bf16 by autocast; the other precisions compute without autocast.

    Args:
        precision: "auto", "32-true", "64-true", "bf16-mixed", "bf16-true" or "16-true"; it is not checked.
        accelerator: The value of `trainer.accelerator`: "auto", "cpu", "gpu", "cuda" or "mps". Only "auto" needs it.
    """
    if precision != "auto":
        return precision
    return "bf16-mixed" if find_device(accelerator).type == "cuda" else "32-true"


def frozen_dtype(precision: str) -> torch.dtype:
    """Return the dtype in which weights that do not train are loaded.

    Args:
        precision: A name that `find_precision` returns. Names that begin with "bf" mean bf16, "16-true" means fp16,
            "64-true" fp64, and any other name fp32.
    """
    return _FROZEN_DTYPES.get(precision[:2], torch.float32)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the largest number of bytes that this process has held at once so far.

    On a CUDA device these are the bytes of torch's tensors there; on any other device, the main memory of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":
        return peak
    # Linux counts in KiB, macOS in bytes.
    return 1024 * peak


def started_ranks() -> StartedRanks | None:
    """Return how many ranks torchrun or srun has started, this process being one of them.

    Only environment variables are read. The result is None if neither program has started this process, as in the shell
    of an interactive SLURM allocation: then this process itself starts the other ranks of its machine.
    """
    environment = os.environ
    if "LOCAL_WORLD_SIZE" in environment and "TORCHELASTIC_RUN_ID" in environment:
        per_node = int(environment["LOCAL_WORLD_SIZE"])
        num_ranks = int(environment["WORLD_SIZE"])
        return StartedRanks("torchrun", num_ranks // per_node, per_node)

    # In an interactive allocation SLURM sets its variables too, but has started no ranks. Lightning knows one by
    # these two job names.
    is_interactive = environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_NTASKS" in environment and not is_interactive:
        nodes_of_step = environment.get("SLURM_STEP_NUM_NODES")
        nodes_of_job = environment.get("SLURM_NNODES")
        num_nodes = int(nodes_of_step or nodes_of_job or 1)
        num_ranks = int(environment["SLURM_NTASKS"])
        return StartedRanks("srun", num_nodes, num_ranks // num_nodes)

    return None


def count_ranks(num_nodes: int | str, devices: int | str | Sequence[int], accelerator: str) -> tuple[int, int]:
    """Return the number of nodes (machines) of a run, and the number of ranks on each node: one for each device.

    Args:
        num_nodes: The value of `trainer.num_nodes`: a number; "auto" is what torchrun or srun has started, else 1.
        devices: The value of `trainer.devices`: a number, or a list of the indices of devices; "auto" or -1 is what
            torchrun or srun has started on a node, else all CUDA devices of this machine, else 1.
        accelerator: The value of `trainer.accelerator`, as `find_device` takes it.

    Raises:
        ConfigError: If torchrun or srun has started another number of nodes, or of ranks on a node.
    """
    started = started_ranks()

    # Lightning writes "all devices" as -1.
    if devices in ("auto", -1):
        num_devices = started.per_node if started else _count_devices(accelerator)
    elif isinstance(devices, int):
        num_devices = devices
    else:
        num_devices = len(devices)

    # A program that nobody has started on other nodes runs on this one alone.
    started_nodes = started.num_nodes if started else 1
    nodes = num_nodes if isinstance(num_nodes, int) else started_nodes

    if started is None:
        return nodes, num_devices

    launcher, nodes_of_launcher, ranks_of_launcher = started
    if (nodes, num_devices) != (nodes_of_launcher, ranks_of_launcher):
        raise ConfigError(
            f"trainer.num_nodes={num_nodes} and trainer.devices={devices} mean {nodes} x {num_devices} ranks, and "
            f"{launcher} has started {nodes_of_launcher} x {ranks_of_launcher}: give it these numbers, or leave both "
            f"at auto"
        )
    return nodes, num_devices


def _count_devices(accelerator: str) -> int:
    """Return the number of devices of this machine that ranks can have: all CUDA devices, else one."""
    if find_device(accelerator).type == "cuda":
        return torch.cuda.device_count()
    return 1
