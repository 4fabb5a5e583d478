"""Count the masked samples of a run by source and reason, over all ranks, and stop a run that has too many.

A sample is masked, which means that it adds nothing to the loss, if its record cannot be read or if nothing of it is
left to learn.
"""

from __future__ import annotations

import logging
from collections import Counter

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT

from visllama.data.collate import Step
from visllama.errors import ConfigError
from visllama.training.lightning_parts import gather_objects, run_module

_FEW = 10_000
"""The least number of training samples of which a share is taken: a share of fewer says little."""
_FEW_OF_VALIDATION = 200
"""The least number of validation samples of which a share is taken: one bad record of a few does not end a run."""
_MOST_NAMED = 100
"""How many masked records are named in the log."""
_log = logging.getLogger("visllama")


class _Seen:
    """The counts of masked samples of a training, or of one validation.

    Attributes:
        counts: Masked samples by source and reason.
        num_samples: All samples, masked or not.
        num_in_a_row: Masked samples since the last good one, on this rank.
        last: The key of the last masked sample, and why it is masked.
    """

    def __init__(self, counts: Counter[str] | None = None, num_samples: int = 0) -> None:
        self.counts: Counter[str] = Counter(counts)
        self.num_samples = num_samples
        self.num_in_a_row = 0
        self.last = ""

    def describe(self) -> str:
        """Return the end of an error message: the counts, the last masked sample, and what to do about them."""
        counts = [f"{name} {count}" for name, count in self.counts.most_common()]
        listed_counts = ", ".join(counts)
        return f"({listed_counts}); the last: {self.last}. Mend the data, or raise it to go on"

    def longest_run(self, step: Step) -> int:
        """Return the largest number of masked samples in a row on this rank that reaches into a Step; update the count.

        Args:
            step: This rank's next Step. Samples at the end of the one before it are counted on.
        """
        longest = 0
        for fault in step["faults"]:
            self.num_in_a_row = 0 if fault is None else self.num_in_a_row + 1
            longest = max(longest, self.num_in_a_row)

        return longest


class BadRecords(Callback):
    """Count and log the masked samples of a run, and stop it with a `ConfigError` if there are too many.

    A masked sample adds nothing to the loss: its record cannot be read, or nothing of it is left to learn. Each
    validation is counted by itself, since it sees the same samples again. A resumed run keeps the counts of its
    training.

    Args:
        max_fraction: The largest allowed fraction (0 to 1) of masked samples: of the training samples so far, and of
            the samples of a validation. A training with fewer than 10,000 samples so far counts as one
            with 10,000, and a validation with fewer than 200 as one with 200.
        max_consecutive: The number of masked samples one after the other on one rank that stops the run.
    """

    def __init__(self, max_fraction: float, max_consecutive: int) -> None:
        self.max_fraction = max_fraction
        self.max_consecutive = max_consecutive
        self.train = _Seen()
        self.val = _Seen()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Step,
        batch_idx: int,
    ) -> None:
        self._count(self.train, f"step {trainer.global_step}", trainer, pl_module, batch)

        # The counts change only at a step with a masked sample.
        if run_module(pl_module).num_bad:
            for name, count in self.train.counts.items():
                pl_module.log(f"data/bad/{name}", float(count))

    def on_validation_epoch_start(self, *_: object, **__: object) -> None:
        self.val = _Seen()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Step,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count(self.val, f"validation at step {trainer.global_step}", trainer, pl_module, batch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, count in self.val.counts.items():
            pl_module.log(f"val/bad/{name}", float(count), rank_zero_only=True)

        # Only here is the number of a validation's samples known; `_count` takes it for at least `_FEW`.
        num_samples = max(self.val.num_samples, _FEW_OF_VALIDATION)
        self._check_share(self.val, f"validation at step {trainer.global_step}", num_samples)

    def _count(self, seen: _Seen, when: str, trainer: pl.Trainer, pl_module: pl.LightningModule, step: Step) -> None:
        """Add the masked samples of one Step of all ranks to the counts, and write them to the log.

        Args:
            seen: The counts to add to.
            when: The step as text, such as "step 12", for messages.
            trainer: The trainer, over whose ranks the counts are summed.
            pl_module: The module, which has the numbers of the Step over all ranks.
            step: The Step of this rank.

        Raises:
            ConfigError: If too many samples are masked.
        """
        module = run_module(pl_module)
        seen.num_samples += module.num_samples
        num_in_a_row = seen.longest_run(step)

        # The number is that of all ranks, so all of them return here, or none.
        if not module.num_bad:
            return

        own_faults = []
        for key, fault in zip(step["keys"], step["faults"], strict=True):
            if fault is not None:
                own_faults.append((key, *fault))

        gathered = gather_objects(trainer, (num_in_a_row, own_faults))
        faults = []
        for num_of_rank, faults_of_rank in gathered:
            num_in_a_row = max(num_in_a_row, num_of_rank)
            faults += faults_of_rank

        # A run over bad data would fill the log.
        num_left = max(0, _MOST_NAMED - seen.counts.total())
        for key, _, reason, detail in faults[:num_left]:
            _log.warning("%s: the record %s is masked: %s: %s", when, key, reason, detail)
        names = [f"{source}/{reason}" for _, source, reason, _ in faults]
        seen.counts.update(names)

        last_key, *_, last_detail = faults[-1]
        seen.last = f"{last_key}: {last_detail}"
        if num_in_a_row >= self.max_consecutive:
            description = seen.describe()
            raise ConfigError(
                f"data.max_consecutive_bad={self.max_consecutive}: {when}, {num_in_a_row} records one after the other "
                f"cannot be read {description}"
            )
        self._check_share(seen, when, max(seen.num_samples, _FEW))

    def _check_share(self, seen: _Seen, when: str, num_samples: int) -> None:
        """Check that masked samples are no larger a fraction than `max_fraction`.

        Args:
            seen: The counts.
            when: The step as text, for the message.
            num_samples: The number of samples of which the fraction is taken.

        Raises:
            ConfigError: If the fraction is larger.
        """
        num_bad = seen.counts.total()
        if num_bad > self.max_fraction * num_samples:
            description = seen.describe()
            raise ConfigError(
                f"data.max_bad_fraction={self.max_fraction}: {when}, {num_bad} of {seen.num_samples} samples cannot be "
                f"read {description}"
            )

    def state_dict(self) -> dict:
        return {
            "counts": dict(self.train.counts),
            "num_samples": self.train.num_samples,
            "val_counts": dict(self.val.counts),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        self.train = _Seen(Counter(state_dict["counts"]), state_dict["num_samples"])
        # Checkpoints of earlier versions have no counts of the validation.
        self.val = _Seen(Counter(state_dict.get("val_counts")))
