"""Find the run's folder, and check that it can be written and holds no run of another config."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from visllama.config.replay import FREE, differing_keys, read_config
from visllama.console import printable
from visllama.errors import ConfigError

_FIRST_FILES_BYTES = 2**17
"""More than what Hydra and we write at the start of a run."""


def find_folder(config: DictConfig) -> Path:
    """Return the absolute path of the folder of a single run, which is the value of `hydra.run.dir`; nothing is made.

    Args:
        config: The whole configuration, with the node `hydra`.

    Raises:
        ConfigError: If the folder's name refers to a key that does not exist.
    """
    try:
        return Path(config.hydra.run.dir).absolute()
    except InterpolationResolutionError as error:
        first_line = str(error).splitlines()[0]
        raise ConfigError(f"hydra.run.dir: {first_line}") from error


def check_folder(config: DictConfig, cfg: DictConfig, make: bool = True) -> None:
    """Check that the run's folder can be written, and that an earlier run in it has the same config.

    With `resume=`, keys that say how a run computes may differ. Nothing is checked for a verb that writes no folder, or
    for a rank of a run whose first rank has checked it.

    Args:
        config: The whole configuration, with the node `hydra`.
        cfg: The same without the node `hydra`.
        make: Whether to make the folder if it is missing. If not, its nearest existing parent is tried, and nothing is
            left behind.

    Raises:
        ConfigError: If the folder cannot be written, or the configs differ; the message names the folder, what differs,
            and what to give.
    """
    folder = Path(config.hydra.run.dir)
    # Hydra makes no folder for a verb that writes none, or for a rank of a run whose first rank has checked it.
    if config.hydra.output_subdir is None:
        return

    _check_writable(folder, make)

    config_file = folder / "config.yaml"
    if config_file.is_file():
        _check_same_config(config_file, cfg)


def _check_writable(folder: Path, make: bool) -> None:
    """Check that a folder can be made and takes the first files of a run, by writing and removing as many bytes."""
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        candidates = (folder, *folder.absolute().parents)
        nearest = next(path for path in candidates if path.exists())

        # A temporary file has no name: nobody sees it, and it is gone even if we are killed.
        with tempfile.TemporaryFile(dir=nearest) as trial:
            trial.write(bytes(_FIRST_FILES_BYTES))
    except OSError as error:
        raise ConfigError(
            f"hydra.run.dir={folder}: cannot be written ({error.strerror}): give another name=, paths.outputs= or "
            f"hydra.run.dir="
        ) from error


def _check_same_config(config_file: Path, cfg: DictConfig) -> None:
    """Check that a `config.yaml` holds the config of this run, but for what a resumed run may change."""
    folder = config_file.parent
    before = _flat(read_config(config_file))
    now = _flat(OmegaConf.to_container(cfg))
    is_resumed = bool(cfg.get("resume"))
    differing = differing_keys(before, now) if is_resumed else _all_differing_keys(before, now)
    if not differing:
        return

    # Three are enough to see what changed: another config may differ in a hundred keys.
    differences = []
    for key in sorted(differing)[:3]:
        differences.append(f"{key}={before.get(key)} there, {now[key]} now")
    shown = printable(", ".join(differences))
    if is_resumed:
        raise ConfigError(
            f"resume={folder}: {shown}: a run goes on as it began; {', '.join(FREE[:-2])} may differ, and with "
            f"data.allow_reorder=true seed and data.* too"
        )
    raise ConfigError(
        f"hydra.run.dir={folder}: holds a run of another config ({shown}): give another name= or hydra.run.dir="
    )


def _all_differing_keys(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Return the keys of `now` that have another value than in `before`; values with a reference are not looked at."""
    keys = []
    for key, value in now.items():
        # A value that still holds a reference holds the folder's name, which changes with each run.
        is_resolved = "${" not in str(value)
        if is_resolved and before.get(key) != value:
            keys.append(key)
    return keys


def _flat(node: object, prefix: str = "") -> dict[str, object]:
    """Return the values of nested dictionaries by their dotted keys; an empty dictionary gives none."""
    if not isinstance(node, dict):
        return {prefix: node}

    flat: dict[str, object] = {}
    for name, value in node.items():
        key = f"{prefix}.{name}".lstrip(".")
        flat |= _flat(value, key)
    return flat
