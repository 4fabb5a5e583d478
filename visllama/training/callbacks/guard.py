"""Steps whose loss or gradients are not finite: not taken, told with their samples, and too many end the run."""

from __future__ import annotations

import logging

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from visllama.data.collate import Step

_MOST_KEYS = 64
_log = logging.getLogger("visllama")


class NonFinite(Callback):
    """Count the steps that were not taken.

    Whether a step was is read one step later, when the GPU has long been given the next: nobody waits for it.

    Args:
        max_in_a_row: So many stop the run.
        lr: To be named then.
    """

    def __init__(self, max_in_a_row: int, lr: float) -> None:
        self.max_in_a_row, self.lr = max_in_a_row, lr
        self.num_skipped = self.in_a_row = 0
        self._before: tuple[int, Tensor | _WhenThere, list[str]] | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, _, step: Step, *__) -> None:
        now = trainer.global_step, _on_its_way(module.is_finite), step["keys"]
        if self._before:
            self._look(trainer, *self._before)
        self._before = now
        if module.device.type == "cpu":
            self._look_now(trainer)
        if self.num_skipped:
            module.log("train/skipped_steps", float(self.num_skipped))

    def on_train_end(self, trainer: pl.Trainer, *_) -> None:
        self._look_now(trainer)

    def _look_now(self, trainer: pl.Trainer) -> None:
        if self._before:
            self._look(trainer, *self._before)
        self._before = None

    def _look(self, trainer: pl.Trainer, number: int, is_finite: Tensor | _WhenThere, keys: list[str]) -> None:
        if is_finite.item():  # the same on all ranks
            self.in_a_row = 0
            return
        self.num_skipped, self.in_a_row = self.num_skipped + 1, self.in_a_row + 1
        if trainer.world_size > 1:
            gathered: list = [None] * trainer.world_size
            dist.all_gather_object(gathered, keys, group=trainer.strategy.control)
            keys = [key for of_rank in gathered for key in of_rank]
        more = f" and {len(keys) - _MOST_KEYS} more" if len(keys) > _MOST_KEYS else ""
        named = f"{', '.join(keys[:_MOST_KEYS])}{more}"
        _log.warning(
            "step %d: its loss or a gradient is not finite, so it was not taken; its samples: %s", number, named
        )
        if self.in_a_row >= self.max_in_a_row:
            raise FloatingPointError(
                f"trainer.max_skipped_steps={self.max_in_a_row}: so many steps in a row had a loss or gradient that is "
                f"not finite; the last is {number} (optim.lr={self.lr}: try a lower rate). Its samples: {named}"
            )

    def state_dict(self) -> dict:
        return {"num_skipped": self.num_skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict) -> None:
        self.num_skipped, self.in_a_row = state["num_skipped"], state["in_a_row"]


def _on_its_way(flag: Tensor) -> Tensor | _WhenThere:
    """Copy a flag to the CPU behind what the GPU has to do; it is there when it is looked at a step later."""
    if flag.device.type != "cuda":
        return flag
    copy = torch.empty_like(flag, device="cpu", pin_memory=True)
    copy.copy_(flag, non_blocking=True)
    return _WhenThere(copy, torch.cuda.current_stream().record_event())


class _WhenThere:
    """A flag, and the event before which it is not there."""

    def __init__(self, flag: Tensor, event: torch.cuda.Event) -> None:
        self.flag, self.event = flag, event

    def item(self) -> bool:
        self.event.synchronize()
        return bool(self.flag.item())
