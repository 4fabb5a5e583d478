"""Print for a person on the terminal, and write the same into the run's `log.txt`; draw progress bars.

Where a program runs as several processes (ranks), only the first one prints and logs.
"""

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
"""The `time.perf_counter()` of the program's start, in seconds; this module is imported before the heavy ones."""

_UNLOGGED: deque[logging.LogRecord] = deque(maxlen=1000)
"""Records that stand in no log yet: the checks speak before the run's folder is made."""


class _KeepUnlogged(logging.Handler):
    """Keep records for the run's log, which is not there yet."""

    def emit(self, record: logging.LogRecord) -> None:
        _UNLOGGED.append(record)


@contextmanager
def before_the_log() -> Generator[None, None, None]:
    """Keep the records of `logging` in memory while the block of a `with` runs, before the run's log file exists.

    Inside the block, `logging` writes nothing to the terminal. The first `say` or `log` after the run's `log.txt` is
    made writes the records into it. At most the last 1000 records are kept.
    """
    root = logging.getLogger()
    before = root.handlers
    root.handlers = [_KeepUnlogged()]
    try:
        yield
    finally:
        root.handlers = before


def is_first_rank() -> bool:
    """Return whether this process is the first of the ranks that were started together, or the only one.

    The rank is read from `RANK` (torchrun), else `SLURM_PROCID` (srun), else `NODE_RANK` and `LOCAL_RANK`; a process
    without any of these environment variables is the first.
    """
    environment = os.environ
    # `RANK` is of torchrun.
    if "RANK" in environment:
        return environment["RANK"] == "0"

    # In a shell of a Slurm job, the variables are there, but the process is no task of srun.
    is_in_shell = environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_NTASKS" in environment and not is_in_shell:
        return environment.get("SLURM_PROCID", "0") == "0"

    node = environment.get("NODE_RANK", "0")
    rank_in_node = environment.get("LOCAL_RANK", "0")
    return node == "0" and rank_in_node == "0"


def printable(text: object) -> str:
    """Return a value as text that is safe to print: signs that cannot be printed become escapes, line breaks stay.

    Control characters, for example, which could steer the terminal, become texts such as `\\x1b`.
    """
    return "".join(_printable_sign(sign) for sign in str(text))


def _printable_sign(sign: str) -> str:
    if sign.isprintable() or sign == "\n":
        return sign
    return sign.encode("unicode_escape").decode()


def number(count: float) -> str:
    """Return a count as a short text: rounded to a whole number with commas if it is below a million ("27", "12,288").

    From a million on, the text has three significant digits and a power of ten ("6.74e9").
    """
    if count < 1e6:
        return f"{count:,.0f}"
    return f"{count:.2e}".replace("e+0", "e").replace("e+", "e")


def is_terminal() -> bool:
    """Return whether standard output is a terminal on which a line can be drawn again, as progress bars need it."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


class _Bars(Progress):
    """Progress bars that leave the cursor visible: a process that ends at once could not show it again."""

    def start(self) -> None:
        super().start()
        self.console.show_cursor()


def bars(*columns: ProgressColumn, auto_refresh: bool = True) -> Progress:
    """Return rich's `Progress` for use by `with`: progress bars that vanish from the terminal when the block ends.

    What `say` prints meanwhile stands above the bars. Where the output is no terminal, and on all ranks but the first,
    nothing is drawn.

    Args:
        columns: The columns of a bar; without any, rich chooses them.
        auto_refresh: Whether a thread draws the bars again, ten times a second. Otherwise they are drawn again only
            when the caller calls `refresh`.
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
    """Show a spinner and the elapsed time on the terminal while the block of a `with` runs.

    Where the output is no terminal, and on all ranks but the first, nothing is shown.

    Yields:
        A function that takes a text, for example the name of the next step, and shows it beside the spinner.
    """
    with bars(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as progress:
        task = progress.add_task("", total=None)

        def show_step(step: str) -> None:
            progress.update(task, description=step)

        yield show_step


def say(*renderables: object) -> None:
    """Print texts and rich renderables (as tables), each on lines of its own, and write them into the run's log file.

    On all ranks but the first nothing is done. A text is printed as it stands, without rich's markup.

    Args:
        renderables: The texts and renderables. A `Table` loses its outer frame where the output is no terminal.
    """
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
    """Write a text into the run's log file, and not on the terminal; on all ranks but the first, do nothing.

    While the run has no log file, texts are kept in memory (the last 1000). The first call after the file exists writes
    them before its own text.
    """
    if not is_first_rank():
        return

    _UNLOGGED.append(logging.LogRecord("visllama", logging.INFO, __file__, 0, text, None, None))
    # To files alone: between the jobs of a sweep the root logger also writes to the terminal.
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    while files and _UNLOGGED:
        record = _UNLOGGED.popleft()
        for handler in files:
            handler.handle(record)
