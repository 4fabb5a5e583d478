"""What a command line is refused with."""

from __future__ import annotations

from visllama.cli import understand
from visllama.config.explain import explain


def refusal(compose_config, verb: str, *overrides: str) -> str | None:
    """Return what a command line is refused with, as the program would say it; None if it is not."""
    try:
        cfg = compose_config(verb, *overrides, *["check_only=true"] * (verb == "train"))
        understand(verb, cfg)
    except Exception as error:
        message = explain(error, overrides, verb)
        if message is None:
            raise
        return message
