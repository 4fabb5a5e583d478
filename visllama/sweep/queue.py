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

    The job gets one GPU, or none if the jobs of the sweep have no GPUs.

    Args:
        function: A function without arguments. The function and its result have to be picklable. A job that is stopped
            is not started again.
        launcher: The parameters of the sweep's jobs (the node `hydra.launcher`), which are not changed. Of them the
            partition, the time limit and others apply to this job too; the numbers of nodes, processes and GPUs do
            not, nor does a signal before the time limit.

    Raises:
        submitit.core.utils.UncompletedJobError: If the job ended without a result, for example at its time limit; its
            subclass `FailedJobError` if the function raised an error.
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
    """Return a submitit executor, whose methods `submit` and `map_array` queue functions as jobs in SLURM.

    Nothing is queued yet. If one process of a job fails, SLURM ends the other processes of the job too.

    Args:
        params: The parameters that `conf/hydra/launcher/slurm.yaml` holds, as plain values and without `_target_`.

    Raises:
        KeyError: If `params` has no `submitit_folder` or no `max_num_timeout`.
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
    """Replace submitit's handlers of signals in this process, a job of SLURM, by those that every run of visllama has.

    submitit would ignore SIGTERM, and at SIGUSR2 stop the job or queue it again. After the call SIGTERM, SIGUSR1 and
    Ctrl-C ask the run to write a checkpoint and to end (see `visllama.machine.preemption`). SIGUSR2 does the same as
    SIGUSR1, and SIGCONT has its default effect.
    """
    preemption.listen()
    # submitit asks SLURM for SIGUSR2 before the time of a job ends; ours is SIGUSR1.
    signal.signal(signal.SIGUSR2, lambda *_: signal.raise_signal(signal.SIGUSR1))
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
