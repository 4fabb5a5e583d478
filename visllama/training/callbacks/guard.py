"""Count and log the steps that were not taken because loss or gradients are not finite, and end a run of too many."""

from __future__ import annotations

import logging
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from jaxtyping import Bool
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from visllama.data.collate import Step
from visllama.training.lightning_parts import gather_objects, run_module

_MOST_KEYS = 64
"""How many samples of a step are named."""
_log = logging.getLogger("visllama")


class NonFinite(Callback):
    """Count the steps that were not taken, and raise `FloatingPointError` when there are too many in a row.

    `VisLlamaModule` does not take a step whose loss or gradients are not finite. The log names its samples. Whether a
    step was taken is read one step later, when the GPU already has the next one, so that no step waits for the answer.

    Args:
        max_in_a_row: The number of steps in a row, none of them taken, that stops the run.
        lr: The learning rate of the config, quoted in the error message.

    Attributes:
        num_skipped: The number of steps that were not taken.
        in_a_row: The number of steps that were not taken since the last one that was.
    """

    def __init__(self, max_in_a_row: int, lr: float) -> None:
        self.max_in_a_row = max_in_a_row
        self.lr = lr
        self.num_skipped = 0
        self.in_a_row = 0
        self._unread: _UnreadStep | None = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Step,
        batch_idx: int,
    ) -> None:
        is_finite = _start_copy(run_module(pl_module).is_finite)

        self._read_last(trainer)
        self._unread = _UnreadStep(trainer.global_step, is_finite, batch["keys"])
        # The CPU has computed the flag already.
        if pl_module.device.type == "cpu":
            self._read_last(trainer)

        if self.num_skipped:
            pl_module.log("train/skipped_steps", float(self.num_skipped))

    def on_train_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        self._read_last(trainer)

    def _read_last(self, trainer: pl.Trainer) -> None:
        """Read the flag that has not been read yet, if there is one, and count its step."""
        if self._unread is not None:
            self._read(trainer, self._unread)
        self._unread = None

    def _read(self, trainer: pl.Trainer, step: _UnreadStep) -> None:
        """Wait for the flag of a step, and count and log the step if it was not taken.

        Raises:
            FloatingPointError: If too many steps in a row were not taken.
        """
        # The flag is the same on all ranks, so all of them gather below, or none.
        if step.is_finite.item():
            self.in_a_row = 0
            return

        self.num_skipped += 1
        self.in_a_row += 1

        gathered = gather_objects(trainer, step.keys)
        keys = [key for keys_of_rank in gathered for key in keys_of_rank]
        num_more = len(keys) - _MOST_KEYS
        named_keys = ", ".join(keys[:_MOST_KEYS])
        if num_more > 0:
            named_keys += f" and {num_more} more"

        _log.warning(
            "step %d: its loss or a gradient is not finite, so it was not taken; its samples: %s",
            step.number,
            named_keys,
        )

        if self.in_a_row >= self.max_in_a_row:
            raise FloatingPointError(
                f"trainer.max_skipped_steps={self.max_in_a_row}: so many steps in a row had a loss or gradient that is "
                f"not finite; the last is {step.number} (optim.lr={self.lr}: try a lower rate). Its samples: "
                f"{named_keys}"
            )

    def state_dict(self) -> dict:
        return {"num_skipped": self.num_skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict) -> None:
        self.num_skipped = state_dict["num_skipped"]
        self.in_a_row = state_dict["in_a_row"]


class _UnreadStep(NamedTuple):
    """A step of which the CPU does not know yet whether it was taken.

    Attributes:
        number: The number of the step.
        is_finite: The flag, which `item` reads.
        keys: The keys of this rank's samples.
    """

    number: int
    is_finite: Bool[Tensor, ""] | _CopiedFlag
    keys: list[str]


def _start_copy(flag: Bool[Tensor, ""]) -> Bool[Tensor, ""] | _CopiedFlag:
    """Return a flag whose `item()` is its value; on CUDA a copy to the CPU is queued behind the GPU's other work."""
    if flag.device.type != "cuda":
        return flag

    # Only into pinned memory can the GPU copy while the program goes on.
    copy = torch.empty_like(flag, device="cpu", pin_memory=True)
    copy.copy_(flag, non_blocking=True)

    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream())
    return _CopiedFlag(copy, event)


class _CopiedFlag:
    """A flag on the CPU that is right once an event has happened."""

    def __init__(self, flag: Bool[Tensor, ""], event: torch.cuda.Event) -> None:
        self.flag = flag
        self.event = event

    def item(self) -> bool:
        """Wait until the GPU has copied the flag, and return it."""
        self.event.synchronize()
        return bool(self.flag.item())
