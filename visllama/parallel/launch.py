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
"""Environment variables of a job's ranks, of which the next job of a sweep must find none."""
_EVERY_S = 0.2
"""Seconds between two looks at the ranks."""
GRACE_S = 30
"""Seconds that the other ranks have to leave by themselves when one rank has left as it was told to."""
_LAST_WORDS_S = 5
"""Seconds that the other ranks of a failed job have to print their errors."""
_OF_FAILED_JOBS: set[int] = set()
"""Process ids of the ranks of a sweep's failed jobs: the sweep goes on, whatever they end with."""
T = TypeVar("T")


def on_all_ranks(trainer: TrainerSettings, plugins: Sequence[str], work: Callable[[Strategy], T]) -> T:
    """Start the ranks that the `trainer` group names, do work on each of them, and return this rank's result.

    Args:
        trainer: The `trainer` group.
        plugins: The user's packages, of which the strategy may be.
        work: The work of a rank. It is called with the strategy, which has its process group, and no model.
    """
    quieten_lightning()
    strategy = build_strategy(trainer, plugins)

    launch_our_way()
    # The Trainer is not kept: making it gives the strategy its launcher and its environment.
    pl.Trainer(
        **places(trainer),
        strategy=strategy,
        plugins=[*environments()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )

    def on_this_rank() -> T:
        # FSDP's strategy shows its mesh to a module.
        strategy.connect(pl.LightningModule())
        strategy.setup_environment()
        return work(strategy)

    try:
        # One device has no launcher.
        result = strategy.launcher.launch(on_this_rank) if strategy.launcher else on_this_rank()
        wait_for_ranks()
        return result
    finally:
        forget_ranks()


def places(trainer: TrainerSettings) -> dict:
    """Return the arguments of Lightning's Trainer for the devices and nodes of the `trainer` group."""
    num_nodes, num_devices = count_ranks(trainer.num_nodes, trainer.devices, trainer.accelerator)

    # Indices name certain devices, and a number would take the first ones.
    devices = trainer.devices if isinstance(trainer.devices, list) else num_devices
    return {"accelerator": trainer.accelerator, "devices": devices, "num_nodes": num_nodes}


def environments() -> list[SLURMEnvironment]:
    """Return Lightning's plugins for ranks that srun has started; an empty list if it has started none."""
    started = started_ranks()
    if started is None or started.launcher != "srun":
        return []
    # `preemption` asks SLURM for another start, and two would ask twice.
    return [SLURMEnvironment(auto_requeue=False)]


def quieten_lightning() -> None:
    """Silence Lightning's messages about what is meant (frozen parts in eval), or what our own tables say better."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        "Found .* module.* in eval mode",
        ".*treespec.*",
        "The number of training batches",
        ".*does not have many workers",
        "Experiment logs directory",
        "`broadcast_buffers` is deprecated",
        # What is logged has been summed over ranks already.
        "It is recommended to use `self.log",
        "torch.distributed is disabled, unavailable or uninitialized",
    ):
        warnings.filterwarnings("ignore", message=message)


def child_command(local_rank: int) -> tuple[list[str], str]:
    """Return the command that starts another rank of this very job, and the working directory for it.

    Lightning would run the same command line again: with `--multirun` each child would go through the sweep by itself,
    and under the console script it would lose the verb.

    Args:
        local_rank: Unused; Lightning passes it, and names the rank in an environment variable too.
    """
    running = invocation()
    command = [sys.executable, "-m", "visllama", running.verb, *running.command]
    command += [override("hydra.run.dir", run_folder()), "hydra.output_subdir=null"]
    # Rank 0 writes log.txt.
    command += [f"hydra.job_logging.handlers.file.filename={os.devnull}"]
    return command, os.getcwd()


def launch_our_way() -> None:
    """Let Lightning's launcher start ranks by `child_command`, and watch them by `watch`."""
    os.environ[preemption.PARENT] = str(os.getpid())
    subprocess_script._hydra_subprocess_cmd = child_command
    subprocess_script._launch_process_observer = watch


def watch(child_processes: list[subprocess.Popen]) -> None:
    """Start a thread that lets no rank outlive another that has failed.

    Args:
        child_processes: The ranks that this process has started, from rank 1 on.
    """
    preemption.watch_over(child_processes)

    # A copy of stderr: while captions are scored, descriptor 2 belongs to the Java programs.
    terminal = os.dup(2)
    threading.Thread(target=_watch, args=(child_processes, terminal), daemon=True, name="ranks").start()


def _watch(children: list[subprocess.Popen], terminal: int) -> None:
    """Look at the ranks until all have ended with code 0, or one of them with another."""
    codes = [child.poll() for child in children]
    while None in codes or any(codes):
        for rank, (child, code) in enumerate(zip(children, codes, strict=True), start=1):
            if not code:
                continue
            is_told_to_leave = code == preemption.exit_code()
            if child.pid in _OF_FAILED_JOBS and not is_told_to_leave:
                _end(children)
                os.close(terminal)
                return
            _follow(rank, code, children, terminal)

        time.sleep(_EVERY_S)
        codes = [child.poll() for child in children]
    os.close(terminal)


def _follow(rank: int, code: int, children: list[subprocess.Popen], terminal: int) -> None:
    """End this process after a rank: with the others, if that rank was told to leave; else at once, with its code."""
    if code == preemption.exit_code():
        # This process ends meanwhile, unless it waits for that rank.
        preemption.tell(preemption.TOLD)
        time.sleep(GRACE_S)
    else:
        message = f"visllama: rank {rank} has ended with code {code}; the others cannot go on\n"
        os.write(terminal, message.encode())

    _end(children)
    # Python's code of a killed process is the signal's number below zero; a shell's is 128 and the number.
    os._exit(code if code > 0 else 128 - code)


def wait_for_ranks(grace_s: float = GRACE_S) -> None:
    """Wait for the ranks that this process has started, and kill those that do not end in time.

    Args:
        grace_s: Seconds that all of them together have to end.
    """
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

    If this job has failed, its other ranks are ended, and do not take the sweep with them.
    """
    is_of_sweep = invocation().is_of_sweep
    error = sys.exc_info()[1]
    has_failed = isinstance(error, Exception)
    if is_of_sweep and has_failed:
        # Before the ranks end: the thread that watches them would end this process too.
        _OF_FAILED_JOBS.update(child.pid for child in preemption.watched())

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # torch raises RuntimeError when another rank is gone, perhaps because it was told to leave.
        if isinstance(error, RuntimeError):
            preemption.wait_to_be_told()
        torch.distributed.destroy_process_group()

    if is_of_sweep and has_failed:
        wait_for_ranks(_LAST_WORDS_S)
    if is_of_sweep:
        for variable in _RANK_VARIABLES:
            os.environ.pop(variable, None)
