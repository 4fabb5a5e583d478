"""Start the ranks of a node (its processes, one a device) from the first of them, watch them, and end them.

Lightning's launcher starts the processes. The functions here replace the command that it runs and the thread with which
it watches them.
"""

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
    """Start the ranks of a config's `trainer` group, call `work` on each of them, and return this rank's result.

    Each further rank is a process that runs the same job, and so calls this too. When this returns, the ranks that this
    process has started have ended, and torch's process group is left.

    Args:
        trainer: The `trainer` group, whose devices, nodes and strategy are used.
        plugins: The names of the user's packages, in which the strategy's class may be.
        work: The function to call. It gets the strategy, which is connected to the other ranks and has no model.

    Raises:
        ConfigError: If the strategy or the number of ranks cannot be used.
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
    """Return the arguments of Lightning's `Trainer` that choose the devices and nodes of a run.

    Args:
        trainer: A config's `trainer` group. "auto" numbers are replaced by what this machine or the launcher has.

    Returns:
        A dictionary of `accelerator`, `devices` (a number, or a list of indices as it is) and `num_nodes`.

    Raises:
        ConfigError: If torchrun or srun has started another number of ranks.
    """
    num_nodes, num_devices = count_ranks(trainer.num_nodes, trainer.devices, trainer.accelerator)

    # Indices name certain devices, and a number would take the first ones.
    devices = trainer.devices if isinstance(trainer.devices, list) else num_devices
    return {"accelerator": trainer.accelerator, "devices": devices, "num_nodes": num_nodes}


def environments() -> list[SLURMEnvironment]:
    """Return Lightning's SLURM plugin in a list if srun has started this process; else an empty list.

    The list is for `Trainer(plugins=...)`. The plugin does not put the job back into SLURM's queue.
    """
    started = started_ranks()
    if started is None or started.launcher != "srun":
        return []
    # `preemption` asks SLURM for another start, and two would ask twice.
    return [SLURMEnvironment(auto_requeue=False)]


def quieten_lightning() -> None:
    """Hide Lightning's messages below warnings, and those of its warnings that do not apply to a run of visllama.

    Such a warning is about something intended (frozen parts in eval mode), or about something that our own tables
    print. Python's warning filters are changed for the whole process.
    """
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
    """Return the command that starts another rank of the running job, and the working directory for it.

    Lightning's launcher calls it. Lightning's own command would repeat this command line: with `--multirun` each child
    would run the whole sweep, and under the console script it would lose the verb.

    Args:
        local_rank: Not used: the command is the same for all ranks. Lightning sets a rank's number in its environment.

    Returns:
        The command as a list of words; and the working directory of this process.
    """
    running = invocation()
    command = [sys.executable, "-m", "visllama", running.verb, *running.command]

    # All ranks of a job have this process's folder, and a child writes no `.hydra/` there.
    command += [override("hydra.run.dir", run_folder()), "hydra.output_subdir=null"]
    # Rank 0 writes log.txt.
    command += [f"hydra.job_logging.handlers.file.filename={os.devnull}"]
    return command, os.getcwd()


def launch_our_way() -> None:
    """Make Lightning's launcher, from now on, start ranks with `child_command` and watch them with `watch`.

    It also sets the environment variable by which a rank knows the process that has started it.
    """
    os.environ[preemption.PARENT] = str(os.getpid())
    subprocess_script._hydra_subprocess_cmd = child_command
    subprocess_script._launch_process_observer = watch


def watch(child_processes: list[subprocess.Popen]) -> None:
    """Start a thread that ends all ranks, this process among them, as soon as one of the others has failed.

    This process then exits with the code of that rank. If the rank had a request to leave (its code says so), the
    others get up to `GRACE_S` seconds to leave by themselves. In a sweep, if the job of that rank has failed on this
    process already, only the other ranks are ended, and this process continues with the next job.

    Args:
        child_processes: The ranks that this process has started, from rank 1 on.
    """
    preemption.watch_over(child_processes)

    # A copy of stderr: while captions are scored, descriptor 2 belongs to the Java programs.
    terminal = os.dup(2)
    threading.Thread(target=_watch, args=(child_processes, terminal), daemon=True, name="ranks").start()


def _watch(children: list[subprocess.Popen], terminal: int) -> None:
    """Look at the ranks every `_EVERY_S` seconds until all have ended with code 0, or one of them with another code."""
    codes = [child.poll() for child in children]
    while None in codes or any(codes):
        for rank, (child, code) in enumerate(zip(children, codes, strict=True), start=1):
            if not code:
                continue

            # The job of such a rank has failed already, and the sweep goes on without it.
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
    """End the other ranks and this process with the code of a rank that has ended; does not return.

    If that rank had a request to leave, this process gets the same request, and has `GRACE_S` seconds to end by itself.
    """
    if code == preemption.exit_code():
        # This process ends meanwhile, unless it waits for that rank.
        preemption.tell(preemption.LEAVE)
        time.sleep(GRACE_S)
    else:
        message = f"visllama: rank {rank} has ended with code {code}; the others cannot go on\n"
        os.write(terminal, message.encode())

    _end(children)
    # Python's code of a killed process is the signal's number below zero; a shell's is 128 and the number.
    os._exit(code if code > 0 else 128 - code)


def wait_for_ranks(grace_s: float = GRACE_S) -> None:
    """Wait until the ranks that this process has started have ended, and kill those that take too long.

    It returns at once in a process that has started none.

    Args:
        grace_s: Seconds from now until which the ranks may end by themselves.
    """
    until = time.monotonic() + grace_s
    for child in preemption.watched():
        try:
            child.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            # Without this the ended process would stay in the system's list until this one ends.
            child.wait()


def _end(children: list[subprocess.Popen]) -> None:
    for child in children:
        if child.poll() is None:
            child.kill()


def forget_ranks() -> None:
    """Leave torch's process group, and in a sweep (several jobs, one after the other) prepare for the next job.

    Call it in a `finally`: it looks at the exception that is being handled. In a sweep, if that is an `Exception`, the
    other ranks of this job get five seconds to end and are killed then. In a sweep the environment variables by which
    ranks find each other are removed too.
    """
    is_of_sweep = invocation().is_of_sweep

    # `Preempted` derives from SystemExit: a job that was asked to leave has not failed.
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
