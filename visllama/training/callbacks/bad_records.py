"""Records that could not be read: counted by source and reason over all ranks, told, and too many stop the run."""

from __future__ import annotations

import logging
from collections import Counter

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from visllama.data.collate import Step
from visllama.errors import ConfigError

_FEW = 10_000
"""Before so many samples were seen, a share of them says little: it is taken of so many."""
_FEW_OF_VALIDATION = 200
"""The same for a validation, which is seen whole: one bad record of a few does not end a run."""
_MOST_TOLD = 100
_log = logging.getLogger("visllama")


class _Seen:
    """The samples of a training, or of one validation.

    Attributes:
        counts: Masked samples by source and reason.
        num_samples: All samples, masked or not.
        num_in_a_row: Masked samples since the last good one, on this rank.
        last: The last masked sample, and why.
    """

    def __init__(self, counts: Counter[str] | None = None, num_samples: int = 0) -> None:
        self.counts: Counter[str] = Counter(counts)
        self.num_samples = num_samples
        self.num_in_a_row = 0
        self.last = ""

    def describe(self) -> str:
        """Return what is masked and what to do, for the end of a message."""
        counted = ", ".join(f"{name} {count}" for name, count in self.counts.most_common())
        return f"({counted}); the last: {self.last}. Mend the data, or raise it to go on"

    def longest_run(self, step: Step) -> int:
        """Return the most masked samples one after the other, up to the end of a Step."""
        longest = 0
        for fault in step["faults"]:
            self.num_in_a_row = 0 if fault is None else self.num_in_a_row + 1
            longest = max(longest, self.num_in_a_row)
        return longest


class BadRecords(Callback):
    """Count the masked samples of a run, and those of each validation by themselves, which sees the same ones again.

    Args:
        max_fraction: Of all training samples seen (of 10,000 at least), and of those of a validation (of 200 at
            least); more stop the run.
        max_consecutive: So many one after the other on one rank stop it.
    """

    def __init__(self, max_fraction: float, max_consecutive: int) -> None:
        self.max_fraction, self.max_consecutive = max_fraction, max_consecutive
        self.train = _Seen()
        self.val = _Seen()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, _, step: Step, *__) -> None:
        self._count(self.train, f"step {trainer.global_step}", trainer, module, step)
        if module.num_bad:
            for name, count in self.train.counts.items():
                module.log(f"data/bad/{name}", float(count))

    def on_validation_epoch_start(self, *_) -> None:
        self.val = _Seen()

    def on_validation_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, _, step: Step, *__) -> None:
        self._count(self.val, f"validation at step {trainer.global_step}", trainer, module, step)

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for name, count in self.val.counts.items():
            module.log(f"val/bad/{name}", float(count), rank_zero_only=True)
        of = max(self.val.num_samples, _FEW_OF_VALIDATION)
        self._check_share(self.val, f"validation at step {trainer.global_step}", of)

    def _count(self, seen: _Seen, when: str, trainer: pl.Trainer, module: pl.LightningModule, step: Step) -> None:
        """Count a Step of all ranks.

        Raises:
            ConfigError: If too much of what was seen is masked.
        """
        seen.num_samples += module.num_samples
        in_a_row = seen.longest_run(step)
        if not module.num_bad:  # of all ranks: all of them go on here, or none
            return

        bad = [(key, *fault) for key, fault in zip(step["keys"], step["faults"], strict=True) if fault is not None]
        if trainer.world_size > 1:
            gathered: list = [None] * trainer.world_size
            dist.all_gather_object(gathered, (in_a_row, bad), group=trainer.strategy.control)
            in_a_row = max(longest for longest, _ in gathered)
            bad = [fault for _, faults in gathered for fault in faults]
        for key, _, reason, detail in bad[: max(0, _MOST_TOLD - seen.counts.total())]:
            _log.warning("%s: the record %s is masked: %s: %s", when, key, reason, detail)
        seen.counts.update(f"{source}/{reason}" for _, source, reason, _ in bad)

        last_key, *_, last_detail = bad[-1]
        seen.last = f"{last_key}: {last_detail}"
        if in_a_row >= self.max_consecutive:
            raise ConfigError(
                f"data.max_consecutive_bad={self.max_consecutive}: {when}, {in_a_row} records one after the other "
                f"cannot be read {seen.describe()}"
            )
        self._check_share(seen, when, max(seen.num_samples, _FEW))

    def _check_share(self, seen: _Seen, when: str, of: int) -> None:
        """Check the share of masked samples.

        Args:
            seen: What was seen.
            when: The step, in words.
            of: Of so many samples the share is taken.

        Raises:
            ConfigError: If it is too large.
        """
        total = seen.counts.total()
        if total > self.max_fraction * of:
            raise ConfigError(
                f"data.max_bad_fraction={self.max_fraction}: {when}, {total} of {seen.num_samples} samples cannot be "
                f"read {seen.describe()}"
            )

    def state_dict(self) -> dict:
        return {
            "counts": dict(self.train.counts),
            "num_samples": self.train.num_samples,
            "val_counts": dict(self.val.counts),
        }

    def load_state_dict(self, state: dict) -> None:
        self.train = _Seen(Counter(state["counts"]), state["num_samples"])
        self.val = _Seen(Counter(state.get("val_counts")))
