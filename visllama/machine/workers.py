"""Processes that work for this one, and end with it, in whatever way it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor


def executor(num_workers: int) -> ProcessPoolExecutor:
    """Build an executor of new processes, which hold nothing of this one's memory."""
    return ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), end_with_parent)


def end_with_parent() -> None:
    """Let a worker end at Ctrl-C without a word, and when its parent is gone: it would wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
