"""Whether the chosen loggers can be used: their packages are there, and no key stands in the configuration."""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from omegaconf import DictConfig, OmegaConf

from visllama.config.overrides import key_of
from visllama.errors import ConfigError, require

_PACKAGES = {
    "visllama.tracking.tensorboard_tracker.": "tensorboard",
    "visllama.tracking.trackio_tracker.": "trackio",
}
"""The package that each tracker's module needs, which is an extra."""
_WANDB = "visllama.tracking.wandb_tracker."
_SECRET_NAME = re.compile(r"(?i)(^|[_.])(api_?key|access_?key|token|secret|password|passwd|credentials?)$")
_SECRET_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bwandb_v\d+_\w{20,}")
_OF_A_LOGGER = re.compile(r"(local-)?[0-9a-f]{40}|[a-z]+://[^/\s:@]+:[^/\s@]+@.*")
"""What is a key of wandb's where it stands in a logger, and a commit elsewhere; or an address with a password."""


def check_loggers(cfg: DictConfig) -> None:
    """Refuse loggers whose package is not there, and wandb online without a key; nothing is imported.

    Raises:
        ConfigError: Naming the logger and what to type.
    """
    for name, node in cfg.logger.items():
        target = str(node.get("_target_"))
        for prefix, package in _PACKAGES.items():
            is_missing = target.startswith(prefix) and find_spec(package) is None
            require(
                not is_missing,
                f"logger={name}: the package {package} is an extra, which is not there:  pip install "
                f"'visllama[trackers]'",
            )
        if target.startswith(_WANDB) and node.get("offline") is False:
            require(
                _has_wandb_key(),
                f"logger.{name}.offline=false: wandb has no key: export WANDB_API_KEY=..., or type `wandb login` once; "
                f"without, logger.{name}.offline=true keeps the run on this machine",
            )


def check_secrets(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Refuse a configuration that holds what looks like a key: it would be written into each run's folder.

    The value is in no message.

    Args:
        cfg: The configuration.
        overrides: The words that were typed, of which a sweep's are in no configuration yet.

    Raises:
        ConfigError: Naming the key of the configuration and the environment variable.
    """
    found = list(_leaves(OmegaConf.to_container(cfg)))
    found += [(key_of(word), word.partition("=")[2]) for word in overrides]
    for key, value in found:
        if value in (None, "", "null"):
            continue
        text = str(value).strip("'\"")
        is_of_logger = key.startswith("logger.")
        is_named = is_of_logger and _SECRET_NAME.search(key) is not None
        is_key = is_of_logger and _OF_A_LOGGER.fullmatch(text) is not None
        if is_named or is_key or _SECRET_VALUE.search(text):
            variable = "HF_TOKEN" if "hf_" in text else "WANDB_API_KEY"
            raise ConfigError(
                f"{key}: holds what looks like a key or a password, which would be written into the run's folder: "
                f"leave it out. Keys are read from the environment (export {variable}=...) or from netrc; and make a "
                f"new key where this one was typed into a file or a shell's history"
            )


def _leaves(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield each value of a plain configuration with its key."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f"{prefix}.{name}".lstrip("."))
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value, prefix)
    else:
        yield prefix, node


def _has_wandb_key() -> bool:
    """Return whether wandb may find a key; which server it is for, wandb knows."""
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        return bool(netrc.netrc(path).hosts)
    except (OSError, netrc.NetrcParseError):
        return False
