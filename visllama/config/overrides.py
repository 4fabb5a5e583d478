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
    """Return the override `key=value`, from which Hydra reads the value back with its type.

    Args:
        key: The dotted key or the group, without a prefix.
        value: None, a boolean, a number, a list of such values, or anything else, which is written as text.
    """
    return f"{key}={written_value(value)}"


def written_value(value: object) -> str:
    """Return a value as it is written behind the `=` of an override, so that Hydra reads it back with its type.

    A text stands in single quotes unless it holds only letters, digits and `_./:+-` and Hydra would read it as a text:
    "true" and "1e-3" are quoted. The quotes are for Hydra, not for a shell.

    Args:
        value: None, a boolean, a number, a list of such values, or anything else, which is written as text.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        texts = [written_value(each) for each in value]
        return f"[{','.join(texts)}]"

    text = str(value)
    is_plain = re.fullmatch(r"[\w./:+-]+", text, re.ASCII) is not None
    if is_plain and not _is_read_with_another_type(text):
        return text
    # Hydra's grammar: a backslash escapes only before a quote (also the closing one).
    escaped = re.sub(r"(\\*)('|$)", _escape, text)
    return f"'{escaped}'"


def _is_read_with_another_type(text: str) -> bool:
    """Return whether Hydra reads a text without quotes as null, a boolean or a number."""
    if text.lower() in ("null", "true", "false"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def in_words(beginnings: Sequence[str]) -> str:
    """Return keys for an error message, with commas between them: "trainer.*, resume" of ("trainer.", "resume").

    Args:
        beginnings: Keys, or beginnings of keys that end with a dot.
    """
    patterns = [f"{each}*" if each.endswith(".") else each for each in beginnings]
    return ", ".join(patterns)


def _escape(match: re.Match[str]) -> str:
    """Return the matched backslashes doubled, and the quote behind them, if there is one, escaped by a backslash."""
    backslashes, quote = match.groups()
    escaped_quote = quote.replace("'", "\\'")
    return backslashes * 2 + escaped_quote
