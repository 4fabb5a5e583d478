"""The configuration of one job of a sweep, as Hydra will compose it where the job runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict, read_write

PRUNE = "+callbacks.prune"
"""The beginning of the overrides by which a job reports to its trial."""


def compose_job(context: HydraContext, sweep: DictConfig, overrides: Sequence[str], number: int) -> DictConfig:
    """Return a job's configuration, together with Hydra's own part; it is Hydra's current one from then on.

    Args:
        context: The context of Hydra, with its loader of configs.
        sweep: The configuration of the sweep.
        overrides: The overrides of the job.
        number: The place of the job in the sweep.
    """
    config = context.config_loader.load_sweep_config(sweep, list(overrides))
    with open_dict(config):
        config.hydra.job.num = number
        config.hydra.job.id = f"job_id_for_{number}"

    # The name of the folder may depend on the choices of the job, which Hydra looks up in its current configuration.
    HydraConfig.instance().set_config(config)
    folder = Path(config.hydra.sweep.dir, str(config.hydra.sweep.subdir)).absolute()
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.runtime.output_dir = str(folder)
    return config
