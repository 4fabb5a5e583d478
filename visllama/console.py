"""What a person reads: on the terminal, and the same in the run's `log.txt`."""

from __future__ import annotations

import io
import logging
import time

from rich.console import Console

STARTED = time.perf_counter()
"""When the program began; this module is imported first, before the heavy ones."""


def say(*renderables: object) -> None:
    """Print rich renderables (tables) and text as it stands; the run's log gets them as plain text."""
    console = Console(highlight=False, soft_wrap=True)
    plain = Console(file=io.StringIO(), width=100, highlight=False, soft_wrap=True)
    for renderable in renderables:
        markup = not isinstance(renderable, str)  # text may hold square brackets of its own
        console.print(renderable, markup=markup)
        plain.print(renderable, markup=markup)
    text = plain.file.getvalue().rstrip("\n")
    # To files alone: between the jobs of a sweep the root logger also writes to the terminal.
    record = logging.LogRecord("visllama", logging.INFO, __file__, 0, text, None, None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
