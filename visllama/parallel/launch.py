"""How the ranks of a node are started by the first of them, watched, and never left behind."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.strategies.launchers import subprocess_script

from visllama.config.invocation import invocation, run_folder
from visllama.config.overrides import override
from visllama.config.schema import TrainerSettings
from visllama.machine import preemption
from visllama.machine.devices import count_ranks, started_ranks
from visllama.parallel.strategy import build_strategy

_RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", preemption.PARENT)
_EVERY_S = 0.2
GRACE_S = 30
"""How long the others have to leave by themselves when one rank has left as it was told to."""
_LAST_WORDS_S = 5
"""How long the other ranks of a job that has failed have to say why they did."""
_OF_FAILED_JOBS: set[int] = set()
"""The process ids of the ranks of a sweep's jobs that have failed: the sweep goes on, whatever they end with."""
T = TypeVar("T")


def on_all_ranks(trainer: TrainerSettings, plugins: Sequence[str], work: Callable[[Strategy], T]) -> T:
    """Start the ranks that the `trainer` group names, do work on each of them, and return what it returns on this one.

    Args:
        trainer: The settings of the ranks.
        plugins: The user's packages, of which the strategy may be.
        work: Gets the strategy, whose process group is there, and which has no model.
    """
    quieten_lightning()
    strategy = build_strategy(trainer, plugins)
    launch_our_way()
    pl.Trainer(
        **places(trainer),
        strategy=strategy,
        plugins=environments(),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )

    def on_this_rank() -> T:
        strategy.connect(pl.LightningModule())  # FSDP's wants one to show its mesh to
        strategy.setup_environment()
        return work(strategy)

    try:
        result = strategy.launcher.launch(on_this_rank) if strategy.launcher else on_this_rank()
        wait_for_ranks()
        return result
    finally:
        forget_ranks()


def places(trainer: TrainerSettings) -> dict:
    """Return what Lightning's Trainer is to be told of the devices and nodes of the `trainer` group."""
    num_nodes, num_devices = count_ranks(trainer.num_nodes, trainer.devices, trainer.accelerator)
    devices = trainer.devices if isinstance(trainer.devices, list) else num_devices
    return {"accelerator": trainer.accelerator, "devices": devices, "num_nodes": num_nodes}


def environments() -> list[SLURMEnvironment]:
    """Return the plugin for ranks that srun has started; it never asks for another start, `preemption` does."""
    started = started_ranks()
    is_of_srun = started is not None and started[0] == "srun"
    return [SLURMEnvironment(auto_requeue=False)] if is_of_srun else []


def quieten_lightning() -> None:
    """Keep off the terminal what our own tables say better, and warnings about what is meant (frozen parts in eval)."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        "Found .* module.* in eval mode",
        ".*treespec.*",
        "The number of training batches",
        ".*does not have many workers",
        "Experiment logs directory",
        "`broadcast_buffers` is deprecated",
        "It is recommended to use `self.log",  # what is logged has been summed over ranks
        "torch.distributed is disabled, unavailable or uninitialized",
    ):
        warnings.filterwarnings("ignore", message=message)


def child_command(local_rank: int) -> tuple[list[str], str]:
    """Return the command that starts another rank of this very job, and its folder.

    Lightning would run the same command line again: with `--multirun` each child would go through the sweep by itself,
    and under the console script it would lose the verb.
    """
    running = invocation()
    command = [sys.executable, "-m", "visllama", running.verb, *running.command]
    command += [override("hydra.run.dir", run_folder()), "hydra.output_subdir=null"]
    command += [f"hydra.job_logging.handlers.file.filename={os.devnull}"]  # rank 0 writes log.txt
    return command, os.getcwd()


def launch_our_way() -> None:
    """Let Lightning's launcher start ranks by `child_command`, and watch them as here."""
    os.environ[preemption.PARENT] = str(os.getpid())
    subprocess_script._hydra_subprocess_cmd = child_command
    subprocess_script._launch_process_observer = watch


def watch(children: list[subprocess.Popen]) -> None:
    """See to it, in a thread, that no rank outlives another that has failed."""
    preemption.watch_over(children)
    terminal = os.dup(2)  # while captions are scored, 2 itself is the Java programs'
    threading.Thread(target=_watch, args=(children, terminal), daemon=True, name="ranks").start()


def _watch(children: list[subprocess.Popen], terminal: int) -> None:
    while None in (codes := [child.poll() for child in children]) or any(codes):
        for rank, code in enumerate(codes, start=1):
            is_of_failed_job = children[rank - 1].pid in _OF_FAILED_JOBS
            if code and code != preemption.exit_code() and is_of_failed_job:
                _end(children)
                os.close(terminal)
                return
            if code:
                _follow(rank, code, children, terminal)
        time.sleep(_EVERY_S)
    os.close(terminal)


def _follow(rank: int, code: int, children: list[subprocess.Popen], terminal: int) -> None:
    """Leave after a rank that has: together, if it was told to; else at once, and with its code."""
    if code == preemption.exit_code():
        preemption.tell(preemption.TOLD)
        time.sleep(GRACE_S)  # this process ends meanwhile, unless it waits for that rank
    else:
        os.write(terminal, f"visllama: rank {rank} has ended with code {code}; the others cannot go on\n".encode())
    _end(children)
    os._exit(code if code > 0 else 128 - code)  # as a shell tells of a signal


def wait_for_ranks(grace_s: float = GRACE_S) -> None:
    """Wait for the ranks that were started here; those that do not end in so many seconds are killed."""
    until = time.monotonic() + grace_s
    for child in preemption.watched():
        try:
            child.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _end(children: list[subprocess.Popen]) -> None:
    for child in children:
        if child.poll() is None:
            child.kill()


def forget_ranks() -> None:
    """Leave the process group and its environment, so that the next job of a sweep starts afresh.

    Where this job has failed, its other ranks are ended, and do not take the sweep with them.
    """
    of_sweep = invocation().is_of_sweep
    has_failed = isinstance(sys.exc_info()[1], Exception)
    if of_sweep and has_failed:
        _OF_FAILED_JOBS.update(child.pid for child in preemption.watched())
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        if isinstance(sys.exc_info()[1], RuntimeError):  # so torch tells of a rank that is gone
            preemption.wait_to_be_told()
        torch.distributed.destroy_process_group()
    if of_sweep and has_failed:
        wait_for_ranks(_LAST_WORDS_S)
    if of_sweep:
        for variable in _RANK_VARIABLES:
            os.environ.pop(variable, None)
