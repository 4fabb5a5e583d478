"""Records that could not be read: counted by source and reason over all ranks, told, and too many stop the run."""

from __future__ import annotations

import logging
from collections import Counter

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from visllama.config import ConfigError
from visllama.data.collate import Step

_FEW = 10_000
"""Before so many samples were seen, a share of them says little: it is taken of so many."""
_MOST_TOLD = 100
_log = logging.getLogger("visllama")


class BadRecords(Callback):
    """Count the masked samples of a run.

    Args:
        max_fraction: Of all samples seen (of 10,000 at least); more stop the run.
        max_consecutive: So many one after the other on one rank stop it.
    """

    def __init__(self, max_fraction: float, max_consecutive: int) -> None:
        self.max_fraction, self.max_consecutive = max_fraction, max_consecutive
        self.counts: Counter[str] = Counter()
        self.num_samples = self._in_a_row = 0

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, _, step: Step, *__) -> None:
        self.num_samples += module.num_samples
        in_a_row = self._longest_run(step)
        if not module.num_bad:  # of all ranks: all of them go on here, or none
            return
        bad = [fault for fault in step["faults"] if fault is not None]
        if trainer.world_size > 1:
            gathered: list = [None] * trainer.world_size
            dist.all_gather_object(gathered, (in_a_row, bad), group=trainer.strategy.control)
            in_a_row, bad = max(run for run, _ in gathered), [fault for _, faults in gathered for fault in faults]
        for source, reason, detail in bad[: max(0, _MOST_TOLD - self.counts.total())]:
            _log.warning("step %d: a record of %s is masked: %s: %s", trainer.global_step, source, reason, detail)
        self.counts.update(f"{source}/{reason}" for source, reason, _ in bad)
        for name, count in self.counts.items():
            module.log(f"data/bad/{name}", float(count))
        self._check(in_a_row, bad[-1])

    def _longest_run(self, step: Step) -> int:
        longest = 0
        for fault in step["faults"]:
            self._in_a_row = 0 if fault is None else self._in_a_row + 1
            longest = max(longest, self._in_a_row)
        return longest

    def _check(self, in_a_row: int, last: tuple[str, str, str]) -> None:
        total = self.counts.total()
        counted = ", ".join(f"{name} {count}" for name, count in self.counts.most_common())
        told = f"({counted}); the last: {last[2]}. Mend the data, or raise it to go on"
        if in_a_row >= self.max_consecutive:
            raise ConfigError(
                f"data.max_consecutive_bad={self.max_consecutive}: {in_a_row} records one after the other cannot be "
                f"read {told}"
            )
        if total > self.max_fraction * max(self.num_samples, _FEW):
            raise ConfigError(
                f"data.max_bad_fraction={self.max_fraction}: {total} of {self.num_samples} samples cannot be read "
                f"{told}"
            )

    def state_dict(self) -> dict:
        return {"counts": dict(self.counts), "num_samples": self.num_samples}

    def load_state_dict(self, state: dict) -> None:
        self.counts, self.num_samples = Counter(state["counts"]), state["num_samples"]
