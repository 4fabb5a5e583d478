"""What sets the jobs of a sweep apart, and whether they are rivals, of which the best is chosen on validation."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from visllama.config.overrides import key_of
from visllama.config.ranges import Range, searched_ranges

SELECTING = "val"
"""The split that rivals are compared on."""
MULTIRUN = "multirun.yaml"
"""The file in a sweep's folder in which its whole configuration is written down."""


def is_selecting() -> bool:
    """Return whether this job is one of rivals, from which the best will be chosen.

    Several seeds of one setting are repeats, not rivals: each is judged on test. A further rank of a job, and a job
    that goes on by itself, are told by the folder above theirs.
    """
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return are_rivals(swept_keys(Path(hydra.sweep.dir)))
    folder = Path(hydra.runtime.output_dir).parent
    return (folder / MULTIRUN).is_file() and are_rivals(swept_keys(folder))


def are_rivals(keys: list[str]) -> bool:
    """Return whether jobs that differ in these keys are rivals; a single job is none, and seeds are repeats."""
    return keys not in ([], ["seed"])


def swept_keys(folder: Path) -> list[str]:
    """Name the keys that a sweep varies, from the configuration in its folder."""
    searched = ranges_in(folder)
    if searched:
        return [each.key for each in searched]
    written = OmegaConf.load(folder / MULTIRUN)
    params = OmegaConf.select(written, "hydra.sweeper.params") or {}
    words = [f"{key}={values}" for key, values in params.items()]
    words += list(written.hydra.overrides.task)  # what was typed wins over the params of sweep=
    overrides = {each.key_or_group: each for each in OverridesParser.create().parse_overrides(words)}
    return [key for key, each in overrides.items() if each.is_sweep_override()]


def ranges_in(folder: Path) -> list[Range]:
    """Return what a search varies, from the configuration in its folder; nothing for a sweep that is a grid."""
    written = OmegaConf.load(folder / MULTIRUN)
    search = OmegaConf.select(written, "search")
    if search is None:
        return []
    typed = list(written.hydra.overrides.task)
    return searched_ranges(typed, OmegaConf.to_container(search.ranges, resolve=True))


def job_name(name: str) -> str:
    """Return the name of a run; of a sweep's job with what was swept, as "lr optim.lr=1e-3". A resolver."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return name
    keys = swept_keys(Path(hydra.sweep.dir))
    words = [word for word in hydra.overrides.task if key_of(word) in keys]
    return " ".join([name, *words])
