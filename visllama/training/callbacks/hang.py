"""End a rank that does nothing for too long, and write the stacks of its threads to a file."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

_BACKSTOP_S = 5
"""Seconds more after which `faulthandler`, which needs no Python, ends the rank if Python's own thread cannot run."""


class HangWatch(Callback):
    """End this process with code 1 if its run does nothing for `timeout_s` seconds, and leave its stacks in a file.

    The file is `stacks/rank_0000.txt` in the run's folder, with the number of the rank. The time begins again at each
    end of a step, of a validation batch and of a validation, and at each saving. If one rank does not take part in an
    exchange between all ranks, all of them hang, and each is ended by its own watch.

    Args:
        run: The run's folder.
        timeout_s: The longest allowed time in seconds: the value of `trainer.timeout_s`.
    """

    def __init__(self, run: Path, timeout_s: float) -> None:
        self.run = run
        self.timeout_s = timeout_s
        self._file: TextIO | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        folder = self.run / "stacks"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"rank_{trainer.global_rank:04d}.txt"

        # Opened now: a hung process may not be able to open it, and C's thread needs its descriptor.
        self._file = open(self.path, "w")  # noqa: SIM115
        self._restart(self._file)

        threading.Thread(target=self._watch, daemon=True, name="hang").start()

    def on_train_start(self, *_: object, **__: object) -> None:
        self._beat()

    def on_train_batch_end(self, *_: object, **__: object) -> None:
        self._beat()

    def on_validation_batch_end(self, *_: object, **__: object) -> None:
        self._beat()

    def on_validation_end(self, *_: object, **__: object) -> None:
        self._beat()

    def on_save_checkpoint(self, *_: object, **__: object) -> None:
        self._beat()

    def _beat(self) -> None:
        if self._file is not None:
            self._restart(self._file)

    def _restart(self, file: TextIO) -> None:
        """Begin anew to count the time after which this rank is ended.

        Args:
            file: The open file for the stacks.
        """
        self._until = time.monotonic() + self.timeout_s
        # A thread of C's, which runs even if another thread never gives Python's lock back.
        faulthandler.dump_traceback_later(self.timeout_s + _BACKSTOP_S, file=file, exit=True)

    def _watch(self) -> None:
        """Wait until the time is over, and end this process; return when `teardown` has taken the file away."""
        while (file := self._file) is not None:
            left = self._until - time.monotonic()
            if left <= 0:
                file.write(f"nothing was done for {self.timeout_s:g} s (trainer.timeout_s); the stacks:\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                message = f"visllama: nothing was done for trainer.timeout_s={self.timeout_s:g}; stacks: {self.path}"
                print(message, file=sys.stderr, flush=True)
                os._exit(1)

            time.sleep(min(left, 1.0))

    def teardown(self, *_: object, **__: object) -> None:
        if self._file is None:
            return
        faulthandler.cancel_dump_traceback_later()
        # The thread reads the attribute, and must not find a closed file there.
        file = self._file
        self._file = None
        file.close()

        # The folder stays if the file of another rank is there.
        with suppress(OSError):
            is_empty = self.path.stat().st_size == 0
            if is_empty:
                self.path.unlink()
                self.path.parent.rmdir()

    def on_exception(self, *_: object, **__: object) -> None:
        self.teardown()
