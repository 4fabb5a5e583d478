"""Start worker processes that end when the process that has started them ends, even if that one is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor


def executor(num_workers: int) -> ProcessPoolExecutor:
    """Return a pool of worker processes, to be used in a `with` statement; they end when this process is gone.

    Workers are started anew ("spawn") and not forked: functions and arguments that are submitted have to be picklable.

    Args:
        num_workers: The largest number of processes.
    """
    # A forked process would share CUDA's state and the locks of other threads, and could hang on either.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_workers, context, end_with_parent)


def end_with_parent() -> None:
    """Make this worker end at Ctrl-C without a message, and with exit code 1 as soon as its parent process is gone.

    It is an initializer of multiprocessing's processes; `executor` calls it in each worker. Without it a worker whose
    parent was killed waits for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process that multiprocessing has started calls this"

    # Ctrl-C goes to all processes of a terminal; Python's own handler would print a traceback from each worker.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def watch() -> None:
        parent.join()

        # Only this ends the main thread too, whatever it waits for.
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
