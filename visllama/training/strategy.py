"""Strategies over ranks, and how Lightning starts the other ranks of a Hydra job."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.strategies.launchers import subprocess_script

from visllama.config import config_dir_options, override
from visllama.plugins import build

_RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def build_strategy(config: Mapping | str, plugins: Sequence[str] = ()) -> Strategy | str:
    """Make the strategy of the `trainer/strategy` group; "auto" is Lightning's own choice (DDP for several devices)."""
    return config if isinstance(config, str) else build(config, plugins)


def child_command(local_rank: int) -> tuple[list[str], str]:
    """Give the command that starts another rank of this very job, and its folder.

    Lightning would run the same command line again: with `--multirun` each child would go through the sweep by itself,
    and under the console script it would lose the verb.
    """
    hydra = HydraConfig.get()
    command = [sys.executable, "-m", "visllama", hydra.job.config_name]
    command += config_dir_options()
    command += list(hydra.overrides.task)
    command += [override("hydra.run.dir", hydra.runtime.output_dir), "hydra.output_subdir=null"]
    command += [f"hydra.job_logging.handlers.file.filename={os.devnull}"]  # rank 0 writes log.txt
    return command, os.getcwd()


def use_child_command() -> None:
    """Let Lightning's launcher start ranks by `child_command`."""
    subprocess_script._hydra_subprocess_cmd = child_command


def forget_ranks() -> None:
    """Leave the process group and its environment, so that the next job of a sweep starts afresh."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        for variable in _RANK_VARIABLES:
            os.environ.pop(variable, None)
