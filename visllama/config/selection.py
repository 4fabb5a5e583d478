"""Find the keys in which the jobs of a sweep differ, and whether the jobs are rivals.

Rivals are jobs of different settings, of which the best is chosen on the validation split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from visllama.config.overrides import key_of
from visllama.config.ranges import Range, searched_ranges

SELECTING = "val"
"""The split that rivals are compared on."""
MULTIRUN = "multirun.yaml"
"""The file in a sweep's folder that holds the sweep's whole configuration."""


def is_selecting() -> bool:
    """Return whether the running Hydra job belongs to a sweep whose best job will be chosen, on the split "val".

    The result is False outside of a sweep, and in a sweep over seeds alone, whose jobs are repeats and no rivals. The
    sweep's `multirun.yaml` is read.

    Raises:
        ValueError: If no Hydra job is running.
    """
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        sweep_folder = Path(hydra.sweep.dir)
        return are_rivals(swept_keys(sweep_folder))

    # A further rank of a job, and a job that is resumed by itself, run outside the sweep: the folder above theirs
    # shows whether they belong to one.
    folder = Path(hydra.runtime.output_dir).parent
    if not (folder / MULTIRUN).is_file():
        return False
    return are_rivals(swept_keys(folder))


def are_rivals(keys: list[str]) -> bool:
    """Return whether jobs that differ in these keys are rivals, of which the best is chosen.

    They are not if they differ in no key, or only in `seed`.
    """
    return keys not in ([], ["seed"])


def swept_keys(folder: Path) -> list[str]:
    """Return the keys that a sweep or a search varies, read from the `multirun.yaml` in its folder.

    Args:
        folder: The folder of the sweep or the search.

    Raises:
        FileNotFoundError: If the folder holds no `multirun.yaml`.
    """
    searched = ranges_in(folder)
    if searched:
        return [each.key for each in searched]

    sweep_config = OmegaConf.load(folder / MULTIRUN)
    params = OmegaConf.select(sweep_config, "hydra.sweeper.params") or {}
    words = [f"{key}={values}" for key, values in params.items()]
    # What was typed comes last: it wins over the params of `sweep=`.
    words += sweep_config.hydra.overrides.task

    overrides = {}
    for parsed in OverridesParser.create().parse_overrides(words):
        overrides[parsed.key_or_group] = parsed
    return [key for key, parsed in overrides.items() if parsed.is_sweep_override()]


def ranges_in(folder: Path) -> list[Range]:
    """Return the ranges that a search draws values from, read from the `multirun.yaml` in its folder.

    For a sweep that is no search, the list is empty.

    Args:
        folder: The folder of the sweep or the search.

    Raises:
        FileNotFoundError: If the folder holds no `multirun.yaml`.
        ConfigError: If a range is wrong, or none is left.
    """
    sweep_config = OmegaConf.load(folder / MULTIRUN)
    search = OmegaConf.select(sweep_config, "search")
    if search is None:
        return []

    typed = list(sweep_config.hydra.overrides.task)
    ranges = cast("dict[str, Any]", OmegaConf.to_container(search.ranges, resolve=True))
    return searched_ranges(typed, ranges)


def job_name(name: str) -> str:
    """Return the name of a run; for a job of a multirun, with the swept overrides behind it, as "lr optim.lr=1e-3".

    YAML files call this as the resolver `${job_name:...}`.

    Args:
        name: The value of the key `name`. Outside of a multirun it is returned unchanged.

    Raises:
        ValueError: If no Hydra job is running.
    """
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return name

    keys = swept_keys(Path(hydra.sweep.dir))
    words = [word for word in hydra.overrides.task if key_of(word) in keys]
    return " ".join([name, *words])
