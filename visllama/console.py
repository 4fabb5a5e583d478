"""What a person reads: on the terminal, and the same in the run's `log.txt`."""

from __future__ import annotations

import io
import logging
import time

from rich.console import Console

STARTED = time.perf_counter()
"""When the program began; this module is imported first, before the heavy ones."""
_log = logging.getLogger("visllama")


def say(*renderables: object) -> None:
    """Print rich renderables (tables, text); the run's log gets them as plain text."""
    console = Console(highlight=False, soft_wrap=True)
    plain = Console(file=io.StringIO(), width=100, highlight=False, soft_wrap=True)
    for renderable in renderables:
        console.print(renderable)
        plain.print(renderable)
    _log.info(plain.file.getvalue().rstrip("\n"))
