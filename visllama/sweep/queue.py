"""How a function becomes a job in SLURM's queue, through submitit, of which only the queueing is used."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any

import submitit
from omegaconf import DictConfig, OmegaConf

from visllama.console import say
from visllama.machine import preemption

_OF_ANY_EXECUTOR = (
    "name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "stderr_to_stdout"
)  # fmt: skip
"""The parameters that submitit's executors share; the others take SLURM's name before their own."""
_OF_THE_EXECUTOR = ("submitit_folder", "max_num_timeout")


def run_in_queue(function: Callable[[], Any], launcher: DictConfig) -> Any:
    """Run a function on one GPU of the cluster, with what else a sweep's jobs have, and say what it said."""
    params = OmegaConf.to_container(launcher, resolve=True)
    params |= {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 1 if params["gpus_per_node"] else None}
    of_sbatch = params["additional_parameters"]  # it keeps no checkpoint, for which a signal or another start would do
    params["additional_parameters"] = {k: v for k, v in of_sbatch.items() if k not in ("signal", "requeue")}
    del params["_target_"]
    job = executor(params).submit(_Alone(function))
    say(f"SLURM's {job.job_id}: queued")
    result = job.result()
    say("\n".join(line for line in (job.stdout() or "").splitlines() if not line.startswith("submitit ")))
    return result


class _Alone:
    """A function as a job, which submitit must not queue again."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def __call__(self) -> Any:
        take_over_signals()
        return self.function()


def executor(params: Mapping[str, Any]) -> submitit.AutoExecutor:
    """Make what queues jobs, of a launcher's parameters."""
    executor = submitit.AutoExecutor(
        params["submitit_folder"], cluster="slurm", slurm_max_num_timeout=params["max_num_timeout"]
    )
    of_slurm = {k if k in _OF_ANY_EXECUTOR else f"slurm_{k}": v for k, v in params.items() if k not in _OF_THE_EXECUTOR}
    # A rank that has failed takes the others down, which would wait for it.
    executor.update_parameters(**of_slurm, slurm_srun_args=["--kill-on-bad-exit=1"])
    return executor


def take_over_signals() -> None:
    """Undo submitit's handlers, which ignore SIGTERM, and at SIGUSR2 stop a job or queue it again."""
    preemption.listen()
    signal.signal(signal.SIGUSR2, lambda *_: signal.raise_signal(signal.SIGUSR1))
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
