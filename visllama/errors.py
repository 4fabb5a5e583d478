"""Errors that a user can mend, and records that cannot be used. Everything may import this: it imports none of ours."""

from collections.abc import Iterable


class ConfigError(ValueError):
    """Raised when what the user asked for cannot be done; the message names the key, what was found, and what to do."""


def require(condition: bool, message: str) -> None:
    """Raise a `ConfigError` with this message unless the condition is true.

    The message is formatted in either case: where that costs something, write `if ...: raise ConfigError(...)`.
    """
    if not condition:
        raise ConfigError(message)


REASONS = ("header", "cut", "text", "format", "pixels", "image", "no_target", "positions")
"""The tar's header is not the index's; the file ends too soon; no text to be read; no JPEG, PNG or WebP; more pixels
than the cap; a picture that does not decode; nothing to learn from it; longer than the language model's
positions."""


class BadRecord(ValueError):
    """One record cannot be read; the others can.

    Args:
        reason: One of `REASONS`.
        detail: What was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REASONS:
            raise ValueError(f"reason={reason!r}: choose from {', '.join(REASONS)}")
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def __reduce__(self):  # workers hand exceptions to the main process
        return type(self), (self.reason, self.detail)


def refuse_ids(ids: Iterable[str], reason: str) -> None:
    """Refuse ids, if there are any.

    Args:
        ids: The ids of what is wrong.
        reason: What is wrong with them, as it stands behind their number.

    Raises:
        ConfigError: With their number, the reason and the first five.
    """
    wrong = sorted(ids)
    if wrong:
        raise ConfigError(f"{len(wrong)} {reason}, first {', '.join(wrong[:5])}")
