"""The LightningModule: one Lightning batch is one optimizer step, over any number of micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from visllama.data.collate import Batch, Step
from visllama.data.order import key
from visllama.errors import ConfigError
from visllama.model.visllama import VisLlama, trained_buffers
from visllama.training.buffers import copy_buffers, settle_buffers
from visllama.training.loss_by_source import LossBySource
from visllama.training.optim import build_optimizer, build_schedule, step_if_finite


class VisLlamaModule(pl.LightningModule):
    """Train a `VisLlama` on Steps.

    The loss is the model's, summed over the supervised tokens of the step's samples on all ranks, divided by
    their number: neither micro-batches nor ranks change it, or the update.

    Args:
        model: As it was built.
        optim: The `optim` config group.
        num_steps: Optimizer steps of the run, for the schedule.
        plugins: The user's packages, of which the optimizer may be.
        load: Loads the model's weights and puts them where the strategy wants them; None if they are there.

    Attributes:
        num_samples: Samples of the last Step, training's or validation's, over all ranks.
        num_targets: Supervised tokens of that Step, over all ranks.
        num_tokens: All tokens of that Step, image spans included and padding left out, over all ranks.
        num_images: Images of that Step, over all ranks.
        num_bad: Those of them that are masked.
        is_finite: Of the last step: one where its loss and gradients were finite, and it was taken; on the device.
    """

    def __init__(
        self, model: VisLlama, optim: Mapping, num_steps: int, plugins: Sequence[str] = (),
        load: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.automatic_optimization = False
        self.model, self.optim, self.num_steps, self.plugins, self._load = model, optim, num_steps, plugins, load
        self._val_sums, self._by_source = torch.zeros(2), None

    def configure_model(self) -> None:
        if self._load:
            self._load()
            self._load = None

    def configure_optimizers(self):
        optimizer = build_optimizer(self.model, self.optim, self.plugins)
        return [optimizer], [build_schedule(optimizer, self.optim, self.num_steps, self.plugins)]

    def on_train_start(self) -> None:
        self._has_buffers = bool(trained_buffers(self.model))  # a look through all modules, so once

    def on_train_batch_start(self, *_) -> None:
        self._buffers_before = copy_buffers(self.model) if self._has_buffers else {}

    def training_step(self, step: Step, batch_idx: int) -> None:
        self._seed_dropout(batch_idx)
        num_targets, rounds = self._agree(step)
        self.num_targets = num_targets
        if num_targets == 0 and self.num_unread == 0:
            raise ConfigError(
                f"step {batch_idx}: none of its samples has a supervised token ({', '.join(step['keys'][:5])}): raise "
                f"stage.max_text_tokens, which may have cut their responses, or stage.global_batch_size"
            )

        self._by_source = self._loss_by_source() if self._is_logged(self.trainer.global_step + 1) else None
        loss = torch.zeros((), device=self.device)
        for batch, sources in rounds[:-1]:
            with self._no_sync():
                loss = loss + self._backward(batch, num_targets, sources)
        batch, sources = rounds[-1]
        loss = self._over_ranks(loss + self._backward(batch, num_targets, sources))
        self._update(loss)
        self._log_step(loss, num_targets)

    def _seed_dropout(self, step: int) -> None:
        """Draw dropout from (seed, step, rank) alone: a resumed run then draws what the whole one would have drawn.

        With a dropout, other ranks or micro-batches draw otherwise, and train other weights.
        """
        torch.manual_seed(key(self.trainer.datamodule.order.seed, step, self.global_rank) >> 1)

    def _agree(self, step: Step) -> tuple[int, list[tuple[Batch, list[str]]]]:
        """Return the supervised tokens of all ranks' Steps, and this rank's micro-batches, each with its sources.

        All ranks get the same number of them, since each forward and backward may be a collective: a rank that has
        fewer than another, or none, is given dummies.
        """
        reasons = [fault[1] for fault in step["faults"] if fault is not None]
        num_unread = len(reasons) - reasons.count("no_target")
        num_rounds = len(step["micro_batches"])
        counts = [num_rounds, step["num_targets"], step["num_samples"], len(reasons), num_unread]
        counts += [step["num_tokens"], step["num_images"]]
        if self.trainer.world_size > 1:
            rounds_of_ranks, *others = zip(*self.trainer.strategy.gather(counts), strict=True)
            counts = [max(rounds_of_ranks), *map(sum, others)]
        most_rounds, num_targets, self.num_samples, self.num_bad, self.num_unread, *sizes = counts
        self.num_tokens, self.num_images = sizes

        rounds = list(zip(step["micro_batches"], step["sources"], strict=True))
        return num_targets, rounds + [(step["dummy"], [])] * (most_rounds - num_rounds)

    def _backward(self, batch: Batch, num_targets: int, sources: Sequence[str]) -> Tensor:
        output = self.model(**batch)
        if self._by_source and sources:
            self._by_source.add(output.logits, batch["labels"], sources)
        loss = output.loss_sum / max(num_targets, 1)
        self.manual_backward(loss)
        return loss.detach()

    def _loss_by_source(self) -> LossBySource | None:
        """Begin to sum losses by source, where there are several."""
        names = self.trainer.datamodule.order.names
        return LossBySource(names, self.device, self.model.token_loss) if len(names) > 1 else None

    def _is_logged(self, step: int) -> bool:
        return step <= 1 or step % self.trainer.log_every_n_steps == 0

    def _update(self, loss: Tensor) -> None:
        optimizer = self.optimizers()
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, self.optim["clip_norm"] or float("inf"))
        self.gradient_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.is_finite = torch.isfinite(self.gradient_norm) & torch.isfinite(loss)
        step_if_finite(optimizer, self.is_finite)
        if self._has_buffers:
            settle_buffers(self.model, self._buffers_before, self.is_finite, self.trainer.world_size)
        optimizer.zero_grad()
        self.lr_schedulers().step()

    def _log_step(self, loss: Tensor, num_targets: int) -> None:
        if not self._is_logged(self.trainer.global_step):
            return
        self.log("train/loss", loss)
        self.log("train/gradient_norm", self.gradient_norm)
        self.log("train/target_tokens", float(num_targets))
        for name, mean in self._by_source.means(self._over_ranks).items() if self._by_source else ():
            self.log(f"train/loss/{name}", mean)

    def on_validation_epoch_start(self) -> None:
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        self._val_sums = torch.zeros(2, device=self.device, dtype=exact)
        self._by_source = self._loss_by_source()

    def validation_step(self, step: Step, batch_idx: int) -> None:
        _, rounds = self._agree(step)
        for batch, sources in rounds:
            output = self.model(**batch)
            self._val_sums[0] += output.loss_sum
            if self._by_source and sources:
                self._by_source.add(output.logits, batch["labels"], sources)
        self._val_sums[1] += step["num_targets"]

    def on_validation_epoch_end(self) -> None:
        total, count = self._over_ranks(self._val_sums)
        if not count:
            raise ConfigError(
                f"val/loss: none of the {len(self.trainer.datamodule.val)} validation records has a supervised token; "
                f"log.txt names what is wrong with them. Mend them, or train without: trainer.val_check_interval=null"
            )
        self.log("val/loss", total / count, rank_zero_only=True)
        for name, mean in self._by_source.means(self._over_ranks).items() if self._by_source else ():
            self.log(f"val/loss/{name}", mean, rank_zero_only=True)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        if checkpoint["global_step"] >= self.num_steps:
            return
        fit = checkpoint["loops"]["fit_loop"]
        last = fit["epoch_loop.batch_progress"]
        if last["is_last_batch"]:  # it was the last step of a run that is to be longer now
            last["is_last_batch"] = False
            # Loggers number their rows by this count. Lightning saves it one too low, and adds one when it goes on,
            # unless the step was saved at its validation.
            is_added = last["total"]["completed"] < last["total"]["processed"]
            fit["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"] - is_added
        fit["epoch_progress"]["current"]["processed"] = 0
        fit["epoch_progress"]["current"]["completed"] = 0

    def _over_ranks(self, tensor: Tensor, op: str = "sum") -> Tensor:
        return self.trainer.strategy.reduce(tensor, reduce_op=op) if self.trainer.world_size > 1 else tensor

    def _no_sync(self):
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if hasattr(strategy, "block_backward_sync") else nullcontext()
