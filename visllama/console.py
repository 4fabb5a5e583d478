"""What a person reads: on the terminal, and the same in the run's `log.txt`."""

from __future__ import annotations

import io
import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

STARTED = time.perf_counter()
"""When the program began; this module is imported first, before the heavy ones."""

_UNLOGGED: deque[logging.LogRecord] = deque(maxlen=1000)
"""Records that stand in no log yet: the checks speak before the run's folder is made."""


class _KeepUnlogged(logging.Handler):
    """A handler that keeps records for the run's log, which is not there yet."""

    def emit(self, record: logging.LogRecord) -> None:
        _UNLOGGED.append(record)


@contextmanager
def before_the_log() -> Iterator[None]:
    """Keep what is logged inside this context for the run's log, and off the terminal."""
    root = logging.getLogger()
    before = root.handlers
    root.handlers = [_KeepUnlogged()]
    try:
        yield
    finally:
        root.handlers = before


def is_first_rank() -> bool:
    """Return whether this process is the first of its ranks, or the only one; it alone speaks and writes."""
    if "RANK" in os.environ:  # of torchrun
        return os.environ["RANK"] == "0"
    if "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return os.environ.get("SLURM_PROCID", "0") == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("NODE_RANK", "LOCAL_RANK"))


def printable(text: object) -> str:
    """Return text as it may go to a terminal: what would steer it, or cannot be seen, is written as an escape."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in str(text))


def say(*renderables: object) -> None:
    """Print rich renderables (tables) and text as it stands, on the first rank; the run's log gets them plain."""
    if not is_first_rank():
        return
    console = Console(highlight=False, soft_wrap=True)
    plain = Console(file=io.StringIO(), width=100, highlight=False, soft_wrap=True)
    for renderable in renderables:
        markup = not isinstance(renderable, str)  # text may hold square brackets of its own
        console.print(renderable, markup=markup)
        plain.print(renderable, markup=markup)
    text = plain.file.getvalue().rstrip("\n")
    _UNLOGGED.append(logging.LogRecord("visllama", logging.INFO, __file__, 0, text, None, None))
    # To files alone: between the jobs of a sweep the root logger also writes to the terminal.
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    while files and _UNLOGGED:
        record = _UNLOGGED.popleft()
        for handler in files:
            handler.handle(record)
