"""Run functions as jobs in SLURM's queue; submitit queues them, and does nothing else."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any, cast

import submitit
from omegaconf import DictConfig, OmegaConf

from visllama.console import say
from visllama.machine import preemption

_OF_ANY_EXECUTOR = (
    "name",
    "timeout_min",
    "mem_gb",
    "nodes",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "stderr_to_stdout",
)
"""The parameters that submitit's executors share; the names of all others begin with `slurm_`."""
_OF_THE_EXECUTOR = ("submitit_folder", "max_num_timeout")
"""The parameters that belong to the executor itself, and not to its jobs."""


def run_in_queue(function: Callable[[], Any], launcher: DictConfig) -> Any:
    """Run a function as a job of one process in SLURM's queue, wait for it, print its output, and return its result.

    The job gets one GPU, or none where the jobs of the sweep have none.

    Args:
        function: The function; it and its result have to be picklable. It is not run again if it is stopped.
        launcher: The parameters of the sweep's jobs, `hydra.launcher`. The numbers of nodes, ranks and GPUs are
            replaced; the others, such as the partition and the time limit, apply to this job too. It is not changed.

    Raises:
        submitit.core.utils.UncompletedJobError: If the job was lost; its subclass `FailedJobError` if the function has
            raised an error.
    """
    # The class of the launcher is of no use to an executor.
    params = cast(dict[str, Any], OmegaConf.to_container(launcher, resolve=True))
    del params["_target_"]
    params["nodes"] = 1
    params["tasks_per_node"] = 1
    params["gpus_per_node"] = 1 if params["gpus_per_node"] else None

    # The function keeps no checkpoint: to warn it before its time ends, or to start it again, would be of no use.
    sbatch_params = params["additional_parameters"]
    kept = {key: value for key, value in sbatch_params.items() if key not in ("signal", "requeue")}
    params["additional_parameters"] = kept

    job = executor(params).submit(_Alone(function))
    say(f"SLURM's {job.job_id}: queued")
    result = job.result()

    # submitit's own lines tell nothing about the function.
    output = job.stdout() or ""
    lines = [line for line in output.splitlines() if not line.startswith("submitit ")]
    say("\n".join(lines))
    return result


class _Alone:
    """A function as a job, which submitit must not queue again."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def __call__(self) -> Any:
        take_over_signals()
        return self.function()


def executor(params: Mapping[str, Any]) -> submitit.AutoExecutor:
    """Return the submitit executor that queues jobs in SLURM with a launcher's parameters; nothing is queued yet.

    Args:
        params: The parameters that `conf/hydra/launcher/slurm.yaml` holds, as plain values and without `_target_`.
    """
    slurm_executor = submitit.AutoExecutor(
        params["submitit_folder"],
        cluster="slurm",
        slurm_max_num_timeout=params["max_num_timeout"],
    )

    job_params = {}
    for key, value in params.items():
        if key in _OF_ANY_EXECUTOR:
            job_params[key] = value
        elif key not in _OF_THE_EXECUTOR:
            job_params[f"slurm_{key}"] = value
    # A rank that has failed takes the others down, which would wait for it forever.
    slurm_executor.update_parameters(**job_params, slurm_srun_args=["--kill-on-bad-exit=1"])
    return slurm_executor


def take_over_signals() -> None:
    """Let this process, a job in SLURM's queue, handle signals as every run of visllama does, and not as submitit does.

    submitit would ignore SIGTERM, and at SIGUSR2 stop the job or queue it again. Afterwards SIGTERM and SIGUSR1 let the
    run save and leave (see `visllama.machine.preemption`), and SIGUSR2 does what SIGUSR1 does.
    """
    preemption.listen()
    # submitit asks SLURM for SIGUSR2 before the time of a job ends; ours is SIGUSR1.
    signal.signal(signal.SIGUSR2, lambda *_: signal.raise_signal(signal.SIGUSR1))
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
