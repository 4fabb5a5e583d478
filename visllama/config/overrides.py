"""Write and read overrides (`key=value`, words of a command line), and find the options that another command needs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig


def config_dir_options() -> list[str]:
    """Return the words with which another command finds the same YAML files as the running Hydra job.

    These are "--config-dir" and DIR for each of the user's folders, then `hydra.searchpath=...` if it was typed; an
    empty list where neither was.
    """
    hydra = HydraConfig.get()

    options = []
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            options += ["--config-dir", source.path]

    # This override names folders too, and Hydra keeps it apart from those of the verb.
    searchpaths = [word for word in hydra.overrides.hydra if word.startswith("hydra.searchpath=")]
    return [*options, *searchpaths]


def key_of(word: str) -> str:
    """Return the key of an override, without `+` or `~` before it: "optim.lr" of `+optim.lr=1e-3`, "optim" of `~optim`.

    A word without `=` is returned whole, as a key.
    """
    without_prefix = word.lstrip("+~")
    return without_prefix.partition("=")[0]


def lists_of(word: str, keys: Sequence[str]) -> str:
    """Return an override with its value `a,b` written as the list `[a,b]`, if its key takes a list.

    Without brackets, Hydra reads commas as the several values of a sweep. A word is returned unchanged if its key is
    another one, or its value has no comma, or begins with a bracket or a quote.

    Args:
        word: The override, without `+` before it.
        keys: The keys that take a list.
    """
    key, _, value = word.partition("=")
    # Brackets or quotes show that the user has already made one value of it.
    is_quoted_or_list = value.startswith(("[", "'", '"'))
    if key not in keys or "," not in value or is_quoted_or_list:
        return word
    return f"{key}=[{value}]"


def override(key: str, value: object) -> str:
    """Return the override `key=value` for Hydra, with the value in single quotes where Hydra's grammar needs them.

    Quotes are needed for all but letters, digits and `_./:+-`. They are for Hydra, not for a shell. The value is
    written as `str` does: None becomes `None` and not `null`, and the text "true" is read back as a boolean.
    """
    text = str(value)
    if re.fullmatch(r"[\w./:+-]+", text, re.ASCII):
        return f"{key}={text}"

    # Hydra's grammar: a backslash escapes only before a quote (also the closing one).
    escaped = re.sub(r"(\\*)('|$)", _escape, text)
    return f"{key}='{escaped}'"


def _escape(match: re.Match[str]) -> str:
    """Return the matched backslashes doubled, and the quote behind them, if there is one, escaped by a backslash."""
    backslashes, quote = match.groups()
    escaped_quote = quote.replace("'", "\\'")
    return backslashes * 2 + escaped_quote
