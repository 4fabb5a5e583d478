"""A sweep's jobs in SLURM's queue, through submitit, of which only the queueing is used."""

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
    """Let Hydra start jobs by `SweepLauncher`.

    Args:
        launch: The value of `launch`; with "slurm" the jobs need numbers of nodes and devices.
        trainer: The group `trainer` of the configuration.

    Raises:
        ConfigError: If there is no queue here, or `launch=slurm` does not know what to ask for.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
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
    """Hydra's launcher: queue the jobs of a sweep, wait for them, and add the result of each to the table.

    Args:
        params: The parameters that `conf/hydra/launcher/slurm.yaml` holds.
    """

    def __init__(self, **params: Any) -> None:
        resolved = OmegaConf.to_container(OmegaConf.create(params), resolve=True)
        self.params = cast(dict[str, Any], resolved)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over before a sweep."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Check all jobs here, queue them, and return what they return; a job that is lost fails alone.

        Args:
            job_overrides: The overrides of each job.
            initial_job_idx: The place of the first of them in the sweep.
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
        say(*(f"job {number}, SLURM's {job.job_id}: queued" for number, job in zip(numbers, jobs, strict=True)))
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
        """Run one job, as one of its ranks.

        Args:
            overrides: The overrides of the job.
            number: The place of the job in the sweep.
            singletons: The state of Hydra in the process that has queued the job.
        """
        take_over_signals()
        Singleton.set_state(singletons)
        setup_globals()
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config.hydra.job):
            config.hydra.job.id = submitit.JobEnvironment().job_id
            config.hydra.job.num = number

        task_function = self.task_function
        was_started_before = int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0
        if was_started_before:
            task_function = going_on(task_function)
        return run_job(
            task_function=task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=self.hydra_context,
        )

    def _check(self, config: DictConfig) -> None:
        """Check before the queue what each job would check behind it.

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
    """Return a task function with which a job that SLURM has started again goes on in its folder."""

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
        last_line = str(error).strip().splitlines()[-1]
        loss = ConfigError(f"SLURM's job {job.job_id} ended as {job.state}, without a result: {last_line}")

    hydra_cfg = OmegaConf.masked_copy(config, "hydra")
    # With the status of a failure, Hydra would raise the error again wherever the value is read.
    result = JobReturn(config.hydra.overrides.task, without_hydra(config), hydra_cfg, status=JobStatus.COMPLETED)
    result.return_value = loss
    return result
