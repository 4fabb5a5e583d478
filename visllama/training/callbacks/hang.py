"""A rank that does nothing for too long: it leaves the stacks of its threads, and ends."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

_BACKSTOP_S = 5
"""So much later a thread of C's does the same, should Python's be kept from it."""


class HangWatch(Callback):
    """End this rank, with its stacks in `stacks/rank_0000.txt`, if no step ends for `timeout_s`.

    A collective that one rank does not come to hangs the others; each of them, and that one, ends by its own watch.

    Args:
        run: The run's folder.
        timeout_s: Longest time between the ends of two steps (or of validation batches, or of saving).
    """

    def __init__(self, run: Path, timeout_s: float) -> None:
        self.run, self.timeout_s = run, timeout_s
        self._file = None

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        folder = self.run / "stacks"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"rank_{trainer.global_rank:04d}.txt"
        self._file = open(self.path, "w")  # noqa: SIM115  (it has to be open when there is no time left)
        self._beat()
        threading.Thread(target=self._watch, daemon=True, name="hang").start()

    def _beat(self, *_) -> None:
        self._until = time.monotonic() + self.timeout_s
        faulthandler.dump_traceback_later(self.timeout_s + _BACKSTOP_S, file=self._file, exit=True)

    on_train_start = on_train_batch_end = on_validation_batch_end = on_validation_end = on_save_checkpoint = _beat

    def _watch(self) -> None:
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

    def teardown(self, *_, **__) -> None:
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            file, self._file = self._file, None
            file.close()
            with suppress(OSError):
                if not self.path.stat().st_size:
                    self.path.unlink()
                    self.path.parent.rmdir()  # unless another rank's is there

    def on_exception(self, *_) -> None:
        self.teardown()
