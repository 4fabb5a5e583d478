"""The two errors of visllama: a wrong configuration (`ConfigError`), and a record that cannot be used (`BadRecord`).

Every module may import this one: it imports none of ours.
"""

from __future__ import annotations

from collections.abc import Iterable


class ConfigError(ValueError):
    """Raised when what the user asked for cannot be done, and the user can change that.

    The message names the key of the configuration, its value, and what to do. The program prints it without a
    traceback, and ends with exit code 2.
    """


def require(condition: bool, message: str) -> None:
    """Check that a condition is true.

    The caller formats the message in either case: where that costs something, write `if ...: raise ConfigError(...)`.

    Raises:
        ConfigError: If the condition is false. The message is `message`.
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
"""The reasons for which a record cannot be used, one of which each `BadRecord` has."""


class BadRecord(ValueError):
    """Raised when one record of a source cannot be used; the other records can.

    Args:
        reason: The kind of the problem, one of `REASONS`, for example "cut" (the file ends too soon); any other text
            raises a `ValueError`.
        detail: What is wrong with the record, as the end of the error's message.

    Attributes:
        reason: One of `REASONS`.
        detail: What is wrong with the record.
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
    """Raise an error that lists wrong ids; without any ids, do nothing.

    Args:
        ids: The ids that are wrong.
        reason: What is wrong with them, as the words after their number: "images have no reference" becomes "3 images
            have no reference, first a, b, c".

    Raises:
        ConfigError: If there are any ids. The message names their number, the reason, and the first five in the order
            of their text.
    """
    wrong_ids = sorted(ids)
    if not wrong_ids:
        return
    num_wrong = len(wrong_ids)
    listed = ", ".join(wrong_ids[:5])
    raise ConfigError(f"{num_wrong} {reason}, first {listed}")
