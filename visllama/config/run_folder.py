"""The run's folder: it can be written, and holds no run of another config."""

from __future__ import annotations

import tempfile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from visllama.config.replay import FREE, differing_keys, read_config
from visllama.console import printable
from visllama.errors import ConfigError

_FIRST_FILES_BYTES = 2**17
"""More than what Hydra and we write at the start of a run."""


def find_folder(config: DictConfig) -> Path:
    """Return the folder of a single run.

    Raises:
        ConfigError: If its name rests on what is not there.
    """
    try:
        return Path(config.hydra.run.dir).absolute()
    except InterpolationResolutionError as error:
        raise ConfigError(f"hydra.run.dir: {str(error).splitlines()[0]}") from error


def check_folder(config: DictConfig, cfg: DictConfig, make: bool = True) -> None:
    """Refuse a run folder that cannot be written, or that holds a run of another config.

    Args:
        config: The whole configuration, with `hydra`.
        cfg: The same without `hydra`.
        make: Whether the folder is made; otherwise nothing of the trial stays.

    Raises:
        ConfigError: Naming the folder, what differs, and what to give.
    """
    folder = Path(config.hydra.run.dir)
    if config.hydra.output_subdir is None:
        return  # a verb that writes no folder, or a rank of a run whose first rank has looked
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        with tempfile.TemporaryFile(dir=place) as trial:  # its name is gone before anybody sees it
            trial.write(bytes(_FIRST_FILES_BYTES))
    except OSError as error:
        raise ConfigError(
            f"hydra.run.dir={folder}: cannot be written ({error.strerror}): give another name=, paths.outputs= or "
            f"hydra.run.dir="
        ) from error
    written = folder / "config.yaml"
    if written.is_file():
        before, now = _flat(read_config(written)), _flat(OmegaConf.to_container(cfg))
        differing = differing_keys(before, now) if cfg.get("resume") else [k for k in now if _differs(before, now, k)]
        told = printable(", ".join(f"{key}={before.get(key)} there, {now[key]} now" for key in sorted(differing)[:3]))
        if differing and cfg.get("resume"):
            raise ConfigError(
                f"resume={folder}: {told}: a run goes on as it began; {', '.join(FREE[:-2])} may differ, and with "
                f"data.allow_reorder=true seed and data.* too"
            )
        if differing:
            raise ConfigError(
                f"hydra.run.dir={folder}: holds a run of another config ({told}): give another name= or hydra.run.dir="
            )


def _differs(before: dict, now: dict, key: str) -> bool:
    return "${" not in str(now[key]) and before.get(key) != now[key]  # what is not resolved holds the folder's name


def _flat(node: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {key: v for name, value in node.items() for key, v in _flat(value, f"{prefix}.{name}".lstrip(".")).items()}
