"""Errors that a user can mend. This module imports nothing, so that everything may import it."""


class ConfigError(ValueError):
    """Raised when what the user asked for cannot be done; the message names the key, what was found, and what to do."""


def require(condition: bool, message: str) -> None:
    """Raise a `ConfigError` with this message unless the condition is true.

    The message is formatted in either case: where that costs something, write `if ...: raise ConfigError(...)`.
    """
    if not condition:
        raise ConfigError(message)
