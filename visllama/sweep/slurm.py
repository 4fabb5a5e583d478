"""Hydra's launcher that runs the jobs of a sweep in SLURM's queue; submitit queues them, and does nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, cast

import submitit
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from submitit.core.utils import UncompletedJobError

from visllama.config.checks import check_train
from visllama.config.plain import without_hydra
from visllama.console import say
from visllama.errors import ConfigError
from visllama.sweep.jobs import compose_job
from visllama.sweep.queue import executor, take_over_signals
from visllama.sweep.table import SweepTable

LAUNCHER = "hydra_plugins.visllama.SweepLauncher"
"""The class that `conf/hydra/launcher/slurm.yaml` names: Hydra takes launchers from a package of its own name alone."""


def use_launcher(launch: str | None, trainer: Mapping | None) -> None:
    """Register `SweepLauncher` with Hydra, in this process, under the name that `hydra/launcher=slurm` asks for.

    Args:
        launch: The value of the key `launch`. With "slurm", `trainer` has to say how many nodes and devices each job
            gets; with any other value, or None, `trainer` is not read.
        trainer: The group `trainer` of the configuration, of which `num_nodes` and `devices` are read. None is allowed
            only where it is not read.

    Raises:
        ConfigError: If this machine has no `sbatch` or `srun`; or if `launch` is "slurm", and `num_nodes` or `devices`
            is no whole number above 0.
    """
    has_slurm = shutil.which("sbatch") is not None and shutil.which("srun") is not None
    if not has_slurm:
        raise ConfigError("launch=slurm: there is no sbatch here: type it on the login node of a cluster")

    if launch == "slurm":
        assert trainer is not None
        num_nodes = trainer["num_nodes"]
        devices = trainer["devices"]
        if not all(isinstance(number, int) and number > 0 for number in (num_nodes, devices)):
            raise ConfigError(
                f"launch=slurm has to ask for nodes and GPUs: give trainer.num_nodes=NODES "
                f"trainer.devices=GPUS_A_NODE as numbers, the same for all jobs (found {num_nodes} and {devices})"
            )
    Plugins.instance().class_name_to_class[LAUNCHER] = SweepLauncher


class SweepLauncher(Launcher):
    """Hydra's launcher: queue the jobs of a sweep in SLURM, wait for them, and add the result of each to `SweepTable`.

    Hydra makes it, and calls `setup` and then `launch`. submitit pickles it, and calls it in each rank of a job.

    Args:
        params: The parameters that `conf/hydra/launcher/slurm.yaml` holds, such as `nodes` and `timeout_min`.
    """

    def __init__(self, **params: Any) -> None:
        resolved = OmegaConf.to_container(OmegaConf.create(params), resolve=True)
        self.params = cast(dict[str, Any], resolved)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the arguments; Hydra calls this method before `launch`.

        Args:
            hydra_context: The context of Hydra, with its callbacks and its loader of configs.
            task_function: The function that a job calls with its configuration.
            config: The whole configuration of the sweep.
        """
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Check all jobs in this process, queue them in SLURM, wait for all of them, and return their results.

        The result of each job is also added to the `SweepTable` among Hydra's callbacks.

        Args:
            job_overrides: For each job, its overrides in the form "key=value".
            initial_job_idx: The number of the first of these jobs in the sweep; the others follow it.

        Returns:
            Hydra's result of each job, from the job's first process, in the order of the jobs. A job that SLURM has
            lost or ended has a `ConfigError` as its `return_value`, and the other jobs run on.

        Raises:
            ConfigError: If the configuration of a job contradicts itself, or names other numbers of nodes and devices
                than the launcher asks SLURM for. No job is queued then.
        """
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        overrides_of_jobs = [list(overrides) for overrides in job_overrides]

        before = HydraConfig.instance().cfg
        configs = []
        for number, overrides in zip(numbers, overrides_of_jobs, strict=True):
            configs.append(compose_job(self.hydra_context, self.config, overrides, number))

        # No job is queued before all of them have passed.
        for config in configs:
            self._check(config)
        HydraConfig.instance().cfg = before

        singletons = [Singleton.get_state() for _ in numbers]
        jobs = executor(self.params).map_array(self, overrides_of_jobs, numbers, singletons)
        lines = [f"job {number}, SLURM's {job.job_id}: queued" for number, job in zip(numbers, jobs, strict=True)]
        say(*lines)
        say(f"What they say: {self.config.hydra.sweep.dir}/JOB/log.txt, and .submitit/ there. This waits for them.")

        results = []
        for number, job, config in zip(numbers, jobs, configs, strict=True):
            result = _job_return(job, config)
            results.append(result)
            say(f"job {number}, SLURM's {job.job_id}: ended")
            self._add_to_table(result)
        return results

    def _add_to_table(self, result: JobReturn) -> None:
        """Add the result of a job to the table of the sweep, as Hydra does for a job that runs in this process."""
        assert result.hydra_cfg is not None and result.cfg is not None
        for callback in self.hydra_context.callbacks.callbacks:
            if isinstance(callback, SweepTable):
                callback.add(result.hydra_cfg.hydra, result.cfg, result.return_value)

    def __call__(self, overrides: list[str], number: int, singletons: dict[type, Singleton]) -> JobReturn:
        """Run one job in this process, which SLURM has started as one of the job's ranks; submitit calls it.

        A job that SLURM has started again goes on in its folder, if it trains.

        Args:
            overrides: The overrides of the job, in the form "key=value".
            number: The number of the job in the sweep.
            singletons: The state of Hydra in the process that has queued the job, which is set in this one.
        """
        take_over_signals()
        Singleton.set_state(singletons)
        setup_globals()
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config.hydra.job):
            config.hydra.job.id = submitit.JobEnvironment().job_id
            config.hydra.job.num = number

        # SLURM counts the starts of a job that was queued again.
        task_function = self.task_function
        num_restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        if num_restarts > 0:
            task_function = going_on(task_function)
        return run_job(
            task_function=task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=self.hydra_context,
        )

    def _check(self, config: DictConfig) -> None:
        """Run the checks of `train` on a job's configuration before the job waits in the queue; other verbs have none.

        Raises:
            ConfigError: If a job contradicts itself, or needs another number of ranks than the queue is asked for.
        """
        if config.hydra.job.config_name != "train":
            return
        HydraConfig.instance().set_config(config)
        check_train(without_hydra(config))

        nodes = self.params["nodes"]
        ranks_a_node = self.params["tasks_per_node"]
        num_nodes = config.trainer.num_nodes
        devices = config.trainer.devices
        if (num_nodes, devices) not in ((nodes, ranks_a_node), ("auto", "auto")):
            raise ConfigError(
                f"trainer.num_nodes={num_nodes} trainer.devices={devices}: of job {config.hydra.job.num}, "
                f"but {nodes} x {ranks_a_node} ranks are asked for: the jobs of one launch=slurm have the same numbers"
            )


def going_on(function: Callable[[DictConfig], object]) -> Callable[[DictConfig], object]:
    """Wrap a job's function so that the job resumes from its own folder, as one that SLURM has started again should.

    Args:
        function: The function that a job calls with its configuration.

    Returns:
        A function that sets the key `resume` of the configuration it gets to the folder of the job, and calls
        `function`. A configuration without that key (of a verb that does not train) is left as it is.
    """

    @wraps(function)
    def job(cfg: DictConfig) -> object:
        # Only what trains has something to go on with.
        if "resume" in cfg:
            cfg.resume = HydraConfig.get().runtime.output_dir
        return function(cfg)

    return job


def _job_return(job: submitit.Job, config: DictConfig) -> JobReturn:
    """Wait for a job, and return what its first rank has returned; for a job that is lost, an error as its result."""
    try:
        return job.results()[0]
    except UncompletedJobError as error:  # FailedJobError is one too
        lines = str(error).strip().splitlines()
        last_line = lines[-1]
        loss = ConfigError(f"SLURM's job {job.job_id} ended as {job.state}, without a result: {last_line}")

    task_overrides = config.hydra.overrides.task
    job_config = without_hydra(config)
    hydra_config = OmegaConf.masked_copy(config, "hydra")
    # With the status of a failure, Hydra would raise the error again wherever the value is read.
    result = JobReturn(task_overrides, job_config, hydra_config, status=JobStatus.COMPLETED)
    result.return_value = loss
    return result
