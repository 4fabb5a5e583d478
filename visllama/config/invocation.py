"""How the running job was started: what was typed, and where it writes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from visllama.config.overrides import config_dir_options, key_of


class Invocation(NamedTuple):
    """The command line of the running job, as Hydra has understood it.

    Attributes:
        verb: The verb, which is also the name of its config.
        overrides: The words `key=value` that were typed, and those that a sweep added for this job, without `sweep=`.
        options: The options that another command needs to find the same configs, as `--config-dir DIR`.
        is_of_sweep: Whether the job is one of a multirun.
    """

    verb: str
    overrides: list[str]
    options: list[str]
    is_of_sweep: bool

    @property
    def command(self) -> list[str]:
        """The arguments with which another command has the same configuration."""
        return [*self.options, *self.overrides]


def invocation() -> Invocation:
    """Return how the running job was started."""
    hydra = HydraConfig.get()
    verb = hydra.job.config_name
    assert verb is not None, "cli.py starts every job with the name of its config"

    # `sweep=` chooses a multirun's values: a single job has no use for it.
    overrides = [word for word in hydra.overrides.task if key_of(word) != "sweep"]
    return Invocation(
        verb=verb,
        overrides=overrides,
        options=config_dir_options(),
        is_of_sweep=hydra.mode == RunMode.MULTIRUN,
    )


def run_folder() -> Path:
    """Return the folder that the running job writes to."""
    return Path(HydraConfig.get().runtime.output_dir)
