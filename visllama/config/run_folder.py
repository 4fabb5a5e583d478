"""Find the run's folder, and check that it can be written and holds no run of another config."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from visllama.config.overrides import in_words
from visllama.config.replay import FREE, changed_keys, differing_keys, read_config
from visllama.config.schema import key_names
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

    With `resume=`, the keys that `differing_keys` in `replay.py` leaves out may differ. Nothing is checked for a verb
    that writes no folder, or on the other ranks (processes) of a run whose first rank has checked the folder.

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
    known_before = _without_removed_keys(read_config(config_file), cfg)
    before = _flat(known_before)
    now = _flat(OmegaConf.to_container(cfg))
    is_resumed = bool(cfg.get("resume"))
    differing = differing_keys(before, now) if is_resumed else changed_keys(before, now)
    if not differing:
        return

    # Three are enough to see what changed: another config may differ in a hundred keys.
    differences = []
    for key in differing[:3]:
        differences.append(f"{key}={before.get(key)} there, {now.get(key)} now")
    shown = printable(", ".join(differences))
    if is_resumed:
        raise ConfigError(
            f"resume={folder}: {shown}: a run goes on as it began; {in_words(FREE)} may differ, and with "
            f"data.allow_reorder=true seed and data.* too"
        )
    raise ConfigError(
        f"hydra.run.dir={folder}: holds a run of another config ({shown}): give another name= or hydra.run.dir="
    )


def _without_removed_keys(before: Mapping[Any, Any], node: DictConfig) -> dict[Any, Any]:
    """Return the values of an earlier run without the keys that only an earlier version of visllama had.

    These are keys that the schema of their node lacks. A node without a schema, as a source, may have any key.

    Args:
        before: The values, as nested dictionaries.
        node: The configuration of this run, or the node of it that has the same key as `before`.
    """
    schema = OmegaConf.get_type(node)
    known = key_names(schema) if is_dataclass(schema) else None

    kept = {}
    for name, value in before.items():
        if known is not None and name not in known:
            continue
        # `in` is false for a reference that leads nowhere, which could not be read.
        has_node_now = name in node and isinstance(node[name], DictConfig)
        if has_node_now and isinstance(value, Mapping):
            kept[name] = _without_removed_keys(value, node[name])
        else:
            kept[name] = value
    return kept


def _flat(node: object, prefix: str = "") -> dict[str, object]:
    """Return the values of nested dictionaries by their dotted keys; an empty dictionary gives none."""
    if not isinstance(node, dict):
        return {prefix: node}

    flat: dict[str, object] = {}
    for name, value in node.items():
        key = f"{prefix}.{name}".lstrip(".")
        flat |= _flat(value, key)
    return flat
