"""Whether plain values fit what a class takes, and which of them it refuses."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

from visllama.errors import ConfigError, require


def check_arguments(key: str, found: type, given: Mapping[str, Any], added: set[str]) -> None:
    signature = inspect.signature(found)
    try:
        signature.bind(**given, **dict.fromkeys(added))
    except TypeError as error:
        takes = ", ".join(name for name in signature.parameters if name not in added)
        raise ConfigError(f"{key}: {error}; {found.__name__} takes {takes}") from error
    try:
        hints = get_type_hints(found.__init__)
    except NameError:  # some do not resolve: those stand as they are written, and are not held to
        hints = {name: p.annotation for name, p in signature.parameters.items() if p.annotation is not p.empty}
    for name, value in given.items():
        if "${" not in str(value):
            hint = hints.get(name, Any)
            require(matches_hint(value, hint), wrong_type(f"{key}.{name}", value, hint))


def wrong_type(key: str, value: object, hint: object) -> str:
    wanted = hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint).replace("typing.", "")
    return f"{key}={value}: must be {wanted}, not {type(value).__name__}".replace("NoneType", "null")


def matches_hint(value: object, hint: Any) -> bool:
    """Return whether a plain value out of YAML can stand for a parameter with this hint."""
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(matches_hint(value, option) for option in get_args(hint))
    if hint in (None, type(None)):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        return isinstance(value, (list, tuple))
    hint = origin or hint
    try:
        return isinstance(value, hint) if isinstance(hint, type) else True
    except TypeError:  # a hint that cannot be asked, as a TypedDict
        return True


def find_refused(key: str, make: Callable[[dict[str, Any]], object], given: dict[str, Any]) -> None:
    """Make something as the run will; where that fails, find the argument without which it does not."""

    def fails(arguments: dict[str, Any]) -> Exception | None:
        try:
            make(arguments)
        except Exception as error:  # of whatever type a class of somebody else's raises
            return error
        return None

    error = fails(given)
    if error is None:
        return
    refused = [name for name in given if not fails({k: v for k, v in given.items() if k != name})]
    named = " with ".join(f"{key}.{name}={given[name]}" for name in refused or given)
    raise ConfigError(f"{named}: {str(error).splitlines()[0]}") from error
