"""Check whether values from YAML fit the parameters of a class, and find which of them the class refuses."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

from visllama.errors import ConfigError


def check_arguments(key: str, cls: type, arguments: Mapping[str, Any], added: set[str]) -> None:
    """Check that a class takes these arguments, by the names and type hints of its `__init__`; nothing is made.

    A value that refers to another key ("${...}") is checked by its name alone.

    Args:
        key: The key of the configuration that holds the arguments, for the message.
        cls: The class.
        arguments: The arguments that the configuration holds, by their names.
        added: The names of further arguments, which the program gives itself when it makes the class.

    Raises:
        ConfigError: If a required argument is missing, the class takes none of that name, or a value is of another type
            than the parameter's annotation.
    """
    signature = inspect.signature(cls)
    placeholders = dict.fromkeys(added)
    try:
        signature.bind(**arguments, **placeholders)
    except TypeError as error:
        parameters = [name for name in signature.parameters if name not in added]
        listed = ", ".join(parameters)
        raise ConfigError(f"{key}: {error}; {cls.__name__} takes {listed}") from error

    hints = _hints(cls, signature)
    for name, value in arguments.items():
        # An interpolation has the value of another key, which is not known yet.
        if "${" in str(value):
            continue
        hint = hints.get(name, Any)
        if not matches_hint(value, hint):
            raise ConfigError(wrong_type(f"{key}.{name}", value, hint))


def _hints(cls: type, signature: inspect.Signature) -> dict[str, Any]:
    """Return the type hints of a class's arguments, by their names; an argument without a hint is left out."""
    try:
        return get_type_hints(cls.__init__)
    except NameError:
        # Names of a `TYPE_CHECKING` block do not resolve: annotations that are texts then allow any value.
        hints = {}
        for name, parameter in signature.parameters.items():
            if parameter.annotation is not parameter.empty:
                hints[name] = parameter.annotation
        return hints


def wrong_type(key: str, value: object, hint: object) -> str:
    """Return an error message for a value of the wrong type, for example "optim.lr=fast: must be float, not str".

    Args:
        key: The key of the configuration that holds the value.
        value: The value.
        hint: The type hint that the value should match; None is named "null", as in YAML.
    """
    is_plain_class = isinstance(hint, type) and get_origin(hint) is None
    wanted = hint.__name__ if is_plain_class else str(hint).replace("typing.", "")
    actual = type(value).__name__
    message = f"{key}={value}: must be {wanted}, not {actual}"
    return message.replace("NoneType", "null")


def matches_hint(value: object, hint: Any) -> bool:
    """Return whether a value from YAML can be given to a parameter with this type hint.

    An integer matches float, a list matches a tuple or a Sequence, and a bool matches no number. What lists and
    dictionaries hold is not checked, and a hint that cannot be checked matches any value.
    """
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(matches_hint(value, option) for option in get_args(hint))
    if hint in (None, type(None)):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    # `bool` is a subclass of `int`, and YAML writes whole floats as integers.
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    # YAML has lists alone.
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        return isinstance(value, (list, tuple))

    # A hint of another kind, as a type variable, says nothing that could be checked here.
    hint = origin or hint
    if not isinstance(hint, type):
        return True
    try:
        return isinstance(value, hint)
    except TypeError:
        # A TypedDict, for example, cannot be asked.
        return True


def find_refused(key: str, make: Callable[[dict[str, Any]], object], arguments: dict[str, Any]) -> None:
    """Call `make(arguments)`; where that raises an error, find the arguments that are to blame.

    `make` is then called again without each argument in turn. An argument is to blame if the call succeeds without it;
    where there is none, all are named.

    Args:
        key: The key of the configuration that holds the arguments, for the message.
        make: The function, which takes the arguments as one dictionary. What it returns is thrown away.
        arguments: The arguments that the configuration holds, by their names.

    Raises:
        ConfigError: If `make(arguments)` raises any error. The message names the arguments to blame, and the error.
    """

    def failure(tried: dict[str, Any]) -> Exception | None:
        # A class of somebody else's can raise anything.
        try:
            make(tried)
        except Exception as error:
            return error
        return None

    error = failure(arguments)
    if error is None:
        return

    refused = []
    for name in arguments:
        others = dict(arguments)
        del others[name]
        if failure(others) is None:
            refused.append(name)

    # Where no argument alone is to blame, all are named.
    blamed = [f"{key}.{name}={arguments[name]}" for name in refused or arguments]
    listed = " with ".join(blamed)
    first_line = str(error).splitlines()[0]
    raise ConfigError(f"{listed}: {first_line}") from error
