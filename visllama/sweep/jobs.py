"""The configuration of one job of a sweep, as Hydra will compose it where the job runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict, read_write

PRUNE = "+callbacks.prune"
"""The beginning of the overrides that add the callback by which a job of a search reports its validation losses."""


def compose_job(context: HydraContext, sweep: DictConfig, overrides: Sequence[str], number: int) -> DictConfig:
    """Compose the configuration of one job of a sweep, as Hydra would; nothing runs, and no folder is made.

    Afterwards Hydra's current configuration (`HydraConfig.instance().cfg`) is that of the job. A caller that still
    needs the configuration from before the call has to set it again.

    Args:
        context: The context that Hydra has given to the sweeper or launcher, with its loader of configs.
        sweep: The whole configuration of the sweep, with the group `hydra`.
        overrides: The overrides of the job, in the form "key=value".
        number: The number of the job in the sweep, counted from 0.

    Returns:
        The whole configuration of the job, with the group `hydra`, in which `runtime.output_dir` is the absolute path
        of the job's folder.

    Raises:
        hydra.errors.HydraException: If an override has a wrong form, or names a key that does not exist.
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
