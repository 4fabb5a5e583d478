"""Processes that work for this one, and end with it, in whatever way it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor


def executor(num_workers: int) -> ProcessPoolExecutor:
    """Build an executor of new processes, which hold nothing of this one's memory."""
    # A forked process would share CUDA's state and the locks of other threads, and could hang on either.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_workers, context, end_with_parent)


def end_with_parent() -> None:
    """Let a worker end at Ctrl-C without a word, and when its parent is gone: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process that `executor` has started calls this"

    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
