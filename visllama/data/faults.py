"""What can be wrong with one record: it is masked in place and counted by its reason, and the order never shifts."""

from __future__ import annotations

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
