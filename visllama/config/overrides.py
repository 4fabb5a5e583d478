"""How an override is written, and which of a running job's options another command needs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig


def config_dir_options() -> list[str]:
    """Return the `--config-dir` options of the running job, for another command that needs the same configs."""
    hydra = HydraConfig.get()

    options = []
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            options += ["--config-dir", source.path]

    searchpaths = [word for word in hydra.overrides.hydra if word.startswith("hydra.searchpath=")]
    return [*options, *searchpaths]


def key_of(word: str) -> str:
    """Return the key of an override as it was typed: "optim.lr" of `+optim.lr=1e-3`, `optim` of `~optim`."""
    without_prefix = word.lstrip("+~")
    return without_prefix.partition("=")[0]


def lists_of(word: str, keys: Sequence[str]) -> str:
    """Return an override with `a,b` written as the list `[a,b]` where its key is one of these.

    Hydra reads bare values with commas between them as the values of a sweep. Other overrides are returned as they are.

    Args:
        word: The override.
        keys: The keys that take a list.
    """
    key, _, value = word.partition("=")
    is_quoted_or_list = value.startswith(("[", "'", '"'))
    if key not in keys or "," not in value or is_quoted_or_list:
        return word
    return f"{key}=[{value}]"


def override(key: str, value: object) -> str:
    """Return `key=value`, quoted where Hydra would otherwise read another value back than this one."""
    text = str(value)
    if re.fullmatch(r"[\w./:+-]+", text, re.ASCII):
        return f"{key}={text}"

    # Hydra's grammar: a backslash escapes only before a quote (also the closing one).
    escaped = re.sub(r"(\\*)('|$)", _escape, text)
    return f"{key}='{escaped}'"


def _escape(match: re.Match[str]) -> str:
    """Return backslashes doubled, and the quote behind them escaped if there is one."""
    backslashes, quote = match.groups()
    escaped_quote = quote.replace("'", "\\'")
    return backslashes * 2 + escaped_quote
