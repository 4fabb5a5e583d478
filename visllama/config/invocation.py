"""Read how the running Hydra job was started: what was typed, and which folder it writes to."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from visllama.config.overrides import config_dir_options, key_of


class Invocation(NamedTuple):
    """The command line of the running job, as Hydra has understood it.

    Attributes:
        verb: The verb, as "train", which is also the name of its config.
        overrides: The overrides `key=value` that were typed, and those that a sweep added for this job, without
            `sweep=`.
        options: The words that another command needs to find the same YAML files: `--config-dir DIR` for each folder,
            and `hydra.searchpath=...` if it was typed.
        is_of_sweep: Whether the job is one of several in a multirun (`-m`).
    """

    verb: str
    overrides: list[str]
    options: list[str]
    is_of_sweep: bool

    @property
    def command(self) -> list[str]:
        """The words to type behind the verb for the same configuration: `options`, then `overrides`."""
        return [*self.options, *self.overrides]


def invocation() -> Invocation:
    """Return the verb and the overrides of the running Hydra job, and whether it is one job of a multirun.

    Raises:
        ValueError: If no Hydra job is running.
    """
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
    """Return the folder that the running Hydra job writes to, whether it exists yet or not.

    Raises:
        ValueError: If no Hydra job is running.
    """
    return Path(HydraConfig.get().runtime.output_dir)
