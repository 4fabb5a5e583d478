"""Errors that a user can mend, and records that cannot be used. Everything may import this: it imports none of ours."""

from __future__ import annotations

from collections.abc import Iterable


class ConfigError(ValueError):
    """Raised when what the user asked for cannot be done; the message names the key, its value, and what to do."""


def require(condition: bool, message: str) -> None:
    """Raise a `ConfigError` with this message unless the condition is true.

    The message is formatted in either case: where that costs something, write `if ...: raise ConfigError(...)`.
    """
    if not condition:
        raise ConfigError(message)


REASONS = (
    # The tar's header is not the one that the index has.
    "header",
    # The file ends too soon.
    "cut",
    # There is no text to be read.
    "text",
    # The picture is no JPEG, PNG or WebP.
    "format",
    # The picture has more pixels than the cap.
    "pixels",
    # The picture does not decode.
    "image",
    # There is nothing to learn from the record.
    "no_target",
    # The record is longer than the language model's positions.
    "positions",
)
"""Why a record cannot be used."""


class BadRecord(ValueError):
    """Raised when one record cannot be used; the others can.

    Args:
        reason: One of `REASONS`.
        detail: What is wrong with the record, in words.
    """

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REASONS:
            raise ValueError(f"reason={reason!r}: choose from {', '.join(REASONS)}")
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[BadRecord], tuple[str, str]]:
        # Loading processes hand exceptions to the main process, and pickle would call the class with the message alone.
        return type(self), (self.reason, self.detail)


def refuse_ids(ids: Iterable[str], reason: str) -> None:
    """Refuse ids, if there are any.

    Args:
        ids: The ids that are wrong.
        reason: What is wrong with them, in words that follow their number.

    Raises:
        ConfigError: If there are ids. The message names their number, the reason and the first five.
    """
    wrong_ids = sorted(ids)
    if wrong_ids:
        raise ConfigError(f"{len(wrong_ids)} {reason}, first {', '.join(wrong_ids[:5])}")
