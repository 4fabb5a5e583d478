"""How the running job was started: what was typed, and where it writes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from visllama.config.overrides import config_dir_options, key_of


class Invocation(NamedTuple):
    """The command line of the running job, as Hydra has understood it."""

    verb: str
    overrides: list[str]
    """The words `key=value` that were typed, and those that a sweep added for this job; `sweep=` itself is none."""
    options: list[str]
    """The options that another command needs to find the same configs, as `--config-dir DIR`."""
    is_of_sweep: bool

    @property
    def command(self) -> list[str]:
        """What another command is given to be configured alike."""
        return [*self.options, *self.overrides]


def invocation() -> Invocation:
    """Return how the running job was started."""
    hydra = HydraConfig.get()
    return Invocation(
        verb=hydra.job.config_name,
        overrides=[word for word in hydra.overrides.task if key_of(word) != "sweep"],
        options=config_dir_options(),
        is_of_sweep=hydra.mode == RunMode.MULTIRUN,
    )


def run_folder() -> Path:
    """Return the folder that the running job writes to."""
    return Path(HydraConfig.get().runtime.output_dir)
