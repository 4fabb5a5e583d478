"""Check that the chosen loggers can be used, and that no key or password stands in the configuration."""

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
_LOGGER_SECRET = re.compile(r"(local-)?[0-9a-f]{40}|[a-z]+://[^/\s:@]+:[^/\s@]+@.*")
"""A key of wandb's, or an address with a password. Elsewhere than in a logger, 40 such digits are a commit."""


def check_loggers(cfg: DictConfig) -> None:
    """Check that each logger's package is installed, and that wandb, if it is online, can find its API key.

    The packages are looked up and not imported; the environment and the file netrc are searched for wandb's API key.

    Args:
        cfg: A configuration with the group `logger`; without any logger, nothing is checked.

    Raises:
        ConfigError: At the first logger that cannot be used; the message names it and what to type.
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

        is_online_wandb = target.startswith(_WANDB) and node.get("offline") is False
        if is_online_wandb and not _has_wandb_key():
            raise ConfigError(
                f"logger.{name}.offline=false: wandb has no key: export WANDB_API_KEY=..., or type `wandb login` once; "
                f"without, logger.{name}.offline=true keeps the run on this machine"
            )


def check_secrets(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Check that no value of a configuration looks like a key or a password.

    The configuration is written into each run's folder, which people share. No message holds the value itself.

    Args:
        cfg: The whole configuration.
        overrides: The overrides `key=value` that were typed for a sweep, whose values are in no configuration yet.

    Raises:
        ConfigError: At the first such value; the message names its key, and the environment variable to use instead.
    """
    values = list(_leaves(OmegaConf.to_container(cfg)))
    for word in overrides:
        typed_value = word.partition("=")[2]
        values.append((key_of(word), typed_value))

    for key, value in values:
        if value in (None, "", "null"):
            continue
        # A word that was typed may still have the quotes around its value, which Hydra takes off.
        text = str(value).strip("'\"")
        if not _is_secret(key, text):
            continue

        # Tokens of the Hugging Face hub begin with hf_; whatever else was found is taken for a key of wandb's.
        variable = "HF_TOKEN" if "hf_" in text else "WANDB_API_KEY"
        raise ConfigError(
            f"{key}: holds what looks like a key or a password, which would be written into the run's folder: "
            f"leave it out. Keys are read from the environment (export {variable}=...) or from netrc; and make a "
            f"new key where this one was typed into a file or a shell's history"
        )


def _is_secret(key: str, text: str) -> bool:
    """Return whether a value looks like a key or a password, by its form or by the name that it has in a logger.

    Args:
        key: The dotted key of the value.
        text: The value as text, without quotes.
    """
    if _SECRET_VALUE.search(text):
        return True

    # Outside of the loggers such names are common: a tokenizer has tokens, and a commit has 40 digits.
    if not key.startswith("logger."):
        return False
    return _SECRET_NAME.search(key) is not None or _LOGGER_SECRET.fullmatch(text) is not None


def _leaves(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield each value inside a plain configuration, with its dotted key; values in a list have the list's key."""
    if isinstance(node, dict):
        for name, value in node.items():
            key = f"{prefix}.{name}".lstrip(".")
            yield from _leaves(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value, prefix)
    else:
        yield prefix, node


def _has_wandb_key() -> bool:
    """Return whether wandb may find a key in the environment or in netrc."""
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(variable):
            return True

    # Any host counts: wandb alone knows the name of its server.
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        return bool(netrc.netrc(path).hosts)
    except (OSError, netrc.NetrcParseError):
        return False
