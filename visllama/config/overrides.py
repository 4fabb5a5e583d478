"""How an override is written, and which of a running job's options another command needs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig


def config_dir_options() -> list[str]:
    """Return the `--config-dir` options of the running job, for another command that needs the same configs."""
    hydra = HydraConfig.get()
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    typed = [word for word in hydra.overrides.hydra if word.startswith("hydra.searchpath=")]
    return [*(word for folder in folders for word in ("--config-dir", folder)), *typed]


def key_of(word: str) -> str:
    """Return the key of an override as it was typed: "optim.lr" of `+optim.lr=1e-3`, `optim` of `~optim`."""
    return word.lstrip("+~").partition("=")[0]


def lists_of(word: str, keys: Sequence[str]) -> str:
    """Return an override with `a,b` written as the list `[a,b]` where its key is one of these; others as they stand.

    Hydra takes values with commas between them as those of a sweep.
    """
    key, _, value = word.partition("=")
    if key not in keys or "," not in value or value.startswith(("[", "'", '"')):
        return word
    return f"{key}=[{value}]"


def override(key: str, value: object) -> str:
    """Write `key=value` so that Hydra reads the value back, quoted where it holds more than plain path characters."""
    text = str(value)
    if re.fullmatch(r"[\w./:+-]+", text, re.ASCII):
        return f"{key}={text}"
    # Hydra's grammar: a backslash escapes only before a quote (also the closing one).
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + m[2].replace("'", "\\'"), text)
    return f"{key}='{escaped}'"
