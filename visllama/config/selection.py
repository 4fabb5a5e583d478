"""What sets the jobs of a sweep apart, and whether they are rivals, of which the best is chosen on validation."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from visllama.config.overrides import key_of

SELECTING = "val"
"""The split that rivals are compared on."""


def is_selecting() -> bool:
    """Return whether this job is one of rivals, from which the best will be chosen.

    Several seeds of one setting are repeats, not rivals: each is judged on test.
    """
    hydra = HydraConfig.get()
    return hydra.mode == RunMode.MULTIRUN and are_rivals(swept_keys(Path(hydra.sweep.dir)))


def are_rivals(keys: list[str]) -> bool:
    """Return whether jobs that differ in these keys are rivals; a single job is none, and seeds are repeats."""
    return keys not in ([], ["seed"])


def swept_keys(folder: Path) -> list[str]:
    """Name the keys that a sweep varies, from the overrides that Hydra wrote down in its folder."""
    written = OmegaConf.load(folder / "multirun.yaml")
    overrides = OverridesParser.create().parse_overrides(list(written.hydra.overrides.task))
    return [override.key_or_group for override in overrides if override.is_sweep_override()]


def job_name(name: str) -> str:
    """Return the name of a run; of a sweep's job with what was swept, as "lr optim.lr=1e-3". A resolver."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return name
    keys = swept_keys(Path(hydra.sweep.dir))
    words = [word for word in hydra.overrides.task if key_of(word) in keys]
    return " ".join([name, *words])
