"""What a person reads: on the terminal, and the same in the run's `log.txt`."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich import get_console
from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

STARTED = time.perf_counter()
"""When the program began; this module is imported first, before the heavy ones."""

_UNLOGGED: deque[logging.LogRecord] = deque(maxlen=1000)
"""Records that stand in no log yet: the checks speak before the run's folder is made."""


class _KeepUnlogged(logging.Handler):
    """Keep records for the run's log, which is not there yet."""

    def emit(self, record: logging.LogRecord) -> None:
        _UNLOGGED.append(record)


@contextmanager
def before_the_log() -> Generator[None, None, None]:
    """Keep what is logged inside this context for the run's log, and off the terminal."""
    root = logging.getLogger()
    before = root.handlers
    root.handlers = [_KeepUnlogged()]
    try:
        yield
    finally:
        root.handlers = before


def is_first_rank() -> bool:
    """Return whether this process is the first of its ranks, or the only one; it alone prints and writes."""
    # `RANK` is of torchrun.
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"

    # In a shell of a Slurm job, the variables are there, but the process is no task of srun.
    is_in_shell = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_NTASKS" in os.environ and not is_in_shell:
        return os.environ.get("SLURM_PROCID", "0") == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("NODE_RANK", "LOCAL_RANK"))


def printable(text: object) -> str:
    """Return text as it may go to a terminal: what would steer it, or cannot be seen, is written as an escape."""
    return "".join(_printable_sign(sign) for sign in str(text))


def _printable_sign(sign: str) -> str:
    if sign.isprintable() or sign == "\n":
        return sign
    return sign.encode("unicode_escape").decode()


def number(count: float) -> str:
    """Return a count as short as three digits allow: 6.74e9, 12,288, 27."""
    if count < 1e6:
        return f"{count:,.0f}"
    return f"{count:.2e}".replace("e+0", "e").replace("e+", "e")


def is_terminal() -> bool:
    """Return whether the output goes to a terminal, where a line can be drawn again."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


class _Bars(Progress):
    """Bars beside a cursor that stays: a process that has to leave at once could not bring it back."""

    def start(self) -> None:
        super().start()
        self.console.show_cursor()


def bars(*columns: ProgressColumn, auto_refresh: bool = True) -> Progress:
    """Return progress bars that vanish from the terminal when their work ends; `say` prints above them.

    Where the output is no terminal, and on all ranks but the first, nothing is drawn.

    Args:
        columns: The columns of a bar; without any, rich chooses them.
        auto_refresh: Whether a thread draws the bars again, ten times a second; otherwise their `refresh` does.
    """
    is_drawn = is_first_rank() and is_terminal()
    return _Bars(
        *columns,
        console=get_console(),
        transient=True,
        disable=not is_drawn,
        auto_refresh=auto_refresh and is_drawn,
    )


@contextmanager
def working() -> Generator[Callable[[str], None], None, None]:
    """Show on the terminal that work of unknown length goes on, and for how long.

    Yields:
        A function that shows the name of the next step.
    """
    with bars(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as progress:
        task = progress.add_task("", total=None)

        def show_step(step: str) -> None:
            progress.update(task, description=step)

        yield show_step


def say(*renderables: object) -> None:
    """Print rich renderables (tables) and texts as they stand, on the first rank; the run's log gets them plain."""
    if not is_first_rank():
        return

    # The console of the bars, so that it prints above them.
    console = get_console()
    buffer = io.StringIO()
    plain_console = Console(file=buffer, width=100)
    for renderable in renderables:
        # A file has no use for frames.
        if isinstance(renderable, Table):
            renderable.show_edge = is_terminal()
        # Text may hold square brackets of its own, which rich would read as markup.
        markup = not isinstance(renderable, str)
        console.print(renderable, markup=markup, highlight=False, soft_wrap=True)
        plain_console.print(renderable, markup=markup, highlight=False, soft_wrap=True)
    log(buffer.getvalue().rstrip("\n"))


def log(text: str) -> None:
    """Write text into the run's log, and not on the terminal; on the first rank only."""
    if not is_first_rank():
        return

    _UNLOGGED.append(logging.LogRecord("visllama", logging.INFO, __file__, 0, text, None, None))
    # To files alone: between the jobs of a sweep the root logger also writes to the terminal.
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    while files and _UNLOGGED:
        record = _UNLOGGED.popleft()
        for handler in files:
            handler.handle(record)
