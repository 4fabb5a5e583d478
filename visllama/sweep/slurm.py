"""A sweep's jobs in SLURM's queue, through submitit, of which only the queueing is used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import submitit
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from visllama.config.checks import check_train
from visllama.config.plain import without_hydra
from visllama.console import say
from visllama.errors import ConfigError
from visllama.sweep.jobs import compose_job
from visllama.sweep.queue import executor, take_over_signals
from visllama.sweep.table import SweepTable

LAUNCHER = "hydra_plugins.visllama.SweepLauncher"
"""What `conf/hydra/launcher/slurm.yaml` names: Hydra takes launchers from a package of its own name alone."""


def use_launcher(launch: str | None, trainer: Mapping | None) -> None:
    """Let Hydra start jobs by `SweepLauncher`.

    Raises:
        ConfigError: If there is no queue here, or `launch=slurm` does not know what to ask for.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise ConfigError("launch=slurm: there is no sbatch here: type it on the login node of a cluster")
    asked = (trainer["num_nodes"], trainer["devices"]) if launch == "slurm" else ()
    if not all(isinstance(number, int) and number > 0 for number in asked):
        raise ConfigError(
            f"launch=slurm has to ask for nodes and GPUs: give trainer.num_nodes=NODES trainer.devices=GPUS_A_NODE as "
            f"numbers, the same for all jobs (found {asked[0]} and {asked[1]})"
        )
    Plugins.instance().class_name_to_class[LAUNCHER] = SweepLauncher


class SweepLauncher(Launcher):
    """Hydra's launcher: queue the jobs of a sweep, wait for them, and let its table see what each gave.

    Args:
        params: What `conf/hydra/launcher/slurm.yaml` holds.
    """

    def __init__(self, **params: Any) -> None:
        self.params = OmegaConf.to_container(OmegaConf.create(params), resolve=True)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Check all jobs here, queue them, and give what they return; a job that is lost fails alone."""
        numbers, before = range(initial_job_idx, initial_job_idx + len(job_overrides)), HydraConfig.instance().cfg
        configs = [
            compose_job(self.hydra_context, self.config, overrides, number)
            for number, overrides in zip(numbers, job_overrides, strict=True)
        ]
        for config in configs:
            self._check(config)
        HydraConfig.instance().cfg = before
        arguments = [
            (list(overrides), number, Singleton.get_state())
            for number, overrides in zip(numbers, job_overrides, strict=True)
        ]
        jobs = executor(self.params).map_array(self, *zip(*arguments, strict=True))
        say(*(f"job {number}, SLURM's {job.job_id}: queued" for number, job in zip(numbers, jobs, strict=True)))
        say(f"What they say: {self.config.hydra.sweep.dir}/JOB/log.txt, and .submitit/ there. This waits for them.")
        returned = []
        for number, job, config in zip(numbers, jobs, configs, strict=True):
            returned.append(_returned(job, config))
            say(f"job {number}, SLURM's {job.job_id}: ended")
            for table in self.hydra_context.callbacks.callbacks:
                if isinstance(table, SweepTable):
                    table.add(returned[-1].hydra_cfg.hydra, returned[-1].cfg, returned[-1].return_value)
        return returned

    def __call__(self, overrides: list[str], number: int, singletons: dict[type, Singleton]) -> JobReturn:
        """Run one job, as one of its ranks.

        Args:
            overrides: Of the job.
            number: Its place in the sweep.
            singletons: Hydra's state in the process that has queued it.
        """
        take_over_signals()
        Singleton.set_state(singletons)
        setup_globals()
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config.hydra.job):
            config.hydra.job.id = submitit.JobEnvironment().job_id
            config.hydra.job.num = number

        was_started_before = int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0
        return run_job(
            task_function=going_on(self.task_function) if was_started_before else self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=self.hydra_context,
        )

    def _check(self, config: DictConfig) -> None:
        """Find before the queue what each job would find behind it.

        Raises:
            ConfigError: If a job contradicts itself, or needs others than the ranks that are asked for.
        """
        if config.hydra.job.config_name != "train":
            return
        HydraConfig.instance().set_config(config)
        check_train(without_hydra(config))
        found, asked = config.trainer, (self.params["nodes"], self.params["tasks_per_node"])
        if (found.num_nodes, found.devices) not in (asked, ("auto", "auto")):
            raise ConfigError(
                f"trainer.num_nodes={found.num_nodes} trainer.devices={found.devices}: of job {config.hydra.job.num}, "
                f"but {asked[0]} x {asked[1]} ranks are asked for: the jobs of one launch=slurm have the same numbers"
            )


def going_on(function: Callable[[DictConfig], object]) -> Callable[[DictConfig], object]:
    """Let a job that SLURM has started again go on in its folder."""

    @wraps(function)
    def job(cfg: DictConfig) -> object:
        if "resume" in cfg:
            cfg.resume = HydraConfig.get().runtime.output_dir
        return function(cfg)

    return job


def _returned(job: submitit.Job, config: DictConfig) -> JobReturn:
    """Return what a job's first rank has returned; the error where it is lost, as a job that fails gives it."""
    try:
        return job.results()[0]
    except submitit.core.utils.UncompletedJobError as error:  # also FailedJobError
        last = str(error).strip().splitlines()[-1]
        lost = ConfigError(f"SLURM's job {job.job_id} ended as {job.state}, without a result: {last}")
    hydra_cfg = OmegaConf.masked_copy(config, "hydra")
    returned = JobReturn(config.hydra.overrides.task, without_hydra(config), hydra_cfg, status=JobStatus.COMPLETED)
    returned.return_value = lost
    return returned
