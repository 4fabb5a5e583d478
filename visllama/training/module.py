"""The LightningModule of a run: each batch that Lightning hands to it is one optimizer step of several micro-batches.

Such a batch is a Step (`visllama.data.collate.Step`): one rank's share of a global batch, cut into micro-batches. A
masked sample of it is one that could not be read, or in which there is nothing to learn: it adds nothing to the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from visllama.data.collate import Batch, Step
from visllama.data.order import key
from visllama.errors import ConfigError
from visllama.model.visllama import VisLlama, trained_buffers
from visllama.training.buffers import copy_buffers, settle_buffers
from visllama.training.lightning_parts import connected, optimizer_of
from visllama.training.loss_by_source import LossBySource
from visllama.training.optim import build_optimizer, build_schedule, step_if_finite


class _Counts(NamedTuple):
    """The counts of a Step, of one rank or summed over all."""

    num_targets: int
    num_samples: int
    num_bad: int
    num_unread: int
    """Masked samples that could not be read; the other masked ones have no supervised token."""
    num_tokens: int
    num_images: int


class VisLlamaModule(pl.LightningModule):
    """Train a `VisLlama` under Lightning's `Trainer`, on the Steps of a `TrainingData`.

    A Step is one rank's share of a global batch, cut into micro-batches. Its masked samples (those that could not be
    read, or have nothing to learn) add nothing to the loss.

    The loss is the model's, summed over the supervised tokens (those that it learns to predict) of the step's samples
    on all ranks, and divided by their number: neither micro-batches nor ranks change the loss or the update.

    Args:
        model: The model, with its weights or without; without them, `load` has to load them.
        optim: The `optim` config group, as `build_optimizer` and `build_schedule` take it, with `clip_norm`.
        num_steps: The number of optimizer steps of the run, for the schedule.
        plugins: The names of the user's packages, in which the optimizer's class may be.
        load: A function that loads the model's weights and puts them where the strategy wants them; it is called once,
            when Lightning has started the ranks. None if the weights are there.

    Attributes:
        num_samples: Samples of the last Step, training's or validation's, over all ranks.
        num_targets: Supervised tokens of the last training Step, over all ranks.
        num_tokens: All tokens of the last Step over all ranks, those that stand for images included, without padding.
        num_images: Images of the last Step, over all ranks.
        num_bad: Masked samples of the last Step, over all ranks.
        num_unread: Masked samples of the last Step that could not be read, over all ranks.
        gradient_norm: L2 norm of all gradients of the last training Step, before clipping; on the device.
        is_finite: Whether loss and gradients of the last training Step were finite, and the step was taken; a boolean
            on the device.
    """

    def __init__(
        self,
        model: VisLlama,
        optim: Mapping[str, Any],
        num_steps: int,
        plugins: Sequence[str] = (),
        load: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()

        # A Step has several micro-batches, each with a backward of its own. Lightning's own loop does one for a step.
        self.automatic_optimization = False

        self.model = model
        self.optim = optim
        self.num_steps = num_steps
        self.plugins = plugins
        self._load = load

        self._val_sums = torch.zeros(2)
        self._by_source: LossBySource | None = None

    def configure_model(self) -> None:
        # Lightning calls this for `fit`, and for a `validate` after it.
        if self._load:
            self._load()
            self._load = None

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LambdaLR]]:
        optimizer = build_optimizer(self.model, self.optim, self.plugins)
        schedule = build_schedule(optimizer, self.optim, self.num_steps, self.plugins)
        return [optimizer], [schedule]

    def on_train_start(self) -> None:
        # Once, because it looks through all modules.
        self._has_buffers = bool(trained_buffers(self.model))

    def on_train_batch_start(self, batch: Step, batch_idx: int) -> None:
        self._buffers_before = copy_buffers(self.model) if self._has_buffers else {}

    def training_step(self, step: Step, batch_idx: int) -> None:
        """Take one optimizer step over a Step of every rank: all forwards and backwards, the update, and the log.

        Lightning calls it on all ranks together.

        Args:
            step: This rank's share of the global batch.
            batch_idx: The number of the step, from 0.

        Raises:
            ConfigError: If the samples of all ranks could be read, but none of them has a supervised token.
        """
        self._seed_dropout(batch_idx)
        num_targets, rounds = self._agree(step)
        self.num_targets = num_targets

        # Samples that cannot be read are counted by `BadRecords`, which ends a run with too many of them.
        if num_targets == 0 and self.num_unread == 0:
            first_keys = ", ".join(step["keys"][:5])
            raise ConfigError(
                f"step {batch_idx}: none of its samples has a supervised token ({first_keys}): raise "
                f"stage.max_text_tokens, which may have cut their responses, or stage.global_batch_size"
            )

        next_step = self.trainer.global_step + 1
        is_logged = self._is_logged(next_step)
        self._by_source = self._loss_by_source() if is_logged else None

        # Gradients of all micro-batches but the last stay on their rank; with the last they are summed over ranks.
        loss = torch.zeros((), device=self.device)
        for batch, sources in rounds[:-1]:
            with self._no_sync():
                loss = loss + self._backward(batch, num_targets, sources)

        batch, sources = rounds[-1]
        loss = loss + self._backward(batch, num_targets, sources)
        loss = self._over_ranks(loss)

        self._update(loss)
        self._log_step(loss, num_targets)

    def _seed_dropout(self, step: int) -> None:
        """Set torch's random seed from the run's seed, the step and the rank, so that a resumed run drops out the same.

        With a dropout, another number of ranks or of micro-batches draws otherwise, and trains other weights.
        """
        seed = connected(self.trainer).datamodule.order.seed
        # A key has 64 bits; the shift fits it into a signed integer.
        torch.manual_seed(key(seed, step, self.global_rank) >> 1)

    def _agree(self, step: Step) -> tuple[int, list[tuple[Batch, list[str]]]]:
        """Sum the counts of all ranks' Steps into this module's attributes, and return this rank's work of the Step.

        All ranks call it together.

        Args:
            step: This rank's Step.

        Returns:
            The number of supervised tokens over all ranks; and this rank's micro-batches, each with the source of each
            of its samples. All ranks get the same number of micro-batches, since each forward and backward may be a
            collective: a rank that has fewer than another, or none, gets dummies.
        """
        counts = _count(step)
        rounds = list(zip(step["micro_batches"], step["sources"], strict=True))
        num_rounds = len(rounds)
        most_rounds = num_rounds

        if self.trainer.world_size > 1:
            # One message for all numbers.
            gathered = connected(self.trainer).strategy.gather([num_rounds, *counts])
            rounds_of_ranks, *columns = zip(*gathered, strict=True)
            most_rounds = max(rounds_of_ranks)
            sums = [sum(column) for column in columns]
            counts = _Counts(*sums)

        self.num_samples = counts.num_samples
        self.num_bad = counts.num_bad
        self.num_unread = counts.num_unread
        self.num_tokens = counts.num_tokens
        self.num_images = counts.num_images

        dummy_round: tuple[Batch, list[str]] = (step["dummy"], [])
        num_missing = most_rounds - num_rounds
        return counts.num_targets, rounds + [dummy_round] * num_missing

    def _backward(self, batch: Batch, num_targets: int, sources: Sequence[str]) -> Float[Tensor, ""]:
        """Run a micro-batch forward and backward, which adds its gradients, and return its part of the step's loss.

        Args:
            batch: The micro-batch.
            num_targets: The number of supervised tokens of the step over all ranks, which divides the loss.
            sources: The name of each sample's source; empty for a dummy, whose loss is not shown.
        """
        output = self.model(**batch)
        if self._by_source and sources:
            self._by_source.add(output.logits, batch["labels"], sources)

        loss = output.loss_sum / max(num_targets, 1)
        self.manual_backward(loss)
        return loss.detach()

    def _loss_by_source(self) -> LossBySource | None:
        """Return a new `LossBySource` of the run's training sources, without sums; None if there is only one source."""
        names = connected(self.trainer).datamodule.order.names
        if len(names) <= 1:
            return None
        return LossBySource(names, self.device, self.model.token_loss)

    def _is_logged(self, step: int) -> bool:
        return step <= 1 or step % connected(self.trainer).log_every_n_steps == 0

    def _update(self, loss: Float[Tensor, ""]) -> None:
        """Clip the gradients, take the step if loss and gradients are finite, and move the schedule on either way.

        Args:
            loss: The loss of the step over all ranks.
        """
        optimizer = optimizer_of(self)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

        # Without a bound the call only returns the norm.
        bound = self.optim["clip_norm"] or float("inf")
        norm = nn.utils.clip_grad_norm_(parameters, bound)

        # Under FSDP each rank has its part of the norm.
        self.gradient_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm

        self.is_finite = torch.isfinite(self.gradient_norm) & torch.isfinite(loss)
        step_if_finite(optimizer, self.is_finite)

        if self._has_buffers:
            settle_buffers(self.model, self._buffers_before, self.is_finite, self.trainer.world_size)

        optimizer.zero_grad()
        schedule = cast(LambdaLR, self.lr_schedulers())
        schedule.step()

    def _log_step(self, loss: Float[Tensor, ""], num_targets: int) -> None:
        if not self._is_logged(self.trainer.global_step):
            return

        self.log("train/loss", loss)
        self.log("train/gradient_norm", self.gradient_norm)
        self.log("train/target_tokens", float(num_targets))

        if self._by_source:
            means = self._by_source.means(self._over_ranks)
            for name, mean in means.items():
                self.log(f"train/loss/{name}", mean)

    def on_validation_epoch_start(self) -> None:
        # The sum of losses, and the number of supervised tokens. mps has no fp64.
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        self._val_sums = torch.zeros(2, device=self.device, dtype=exact)
        self._by_source = self._loss_by_source()

    def validation_step(self, step: Step, batch_idx: int) -> None:
        """Add the loss of a Step of validation samples to the sums of this validation; all ranks call it together.

        Args:
            step: This rank's share of a validation batch.
            batch_idx: Not used; Lightning passes the number of the batch.
        """
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
            num_records = len(connected(self.trainer).datamodule.val)
            raise ConfigError(
                f"val/loss: none of the {num_records} validation records has a supervised token; "
                f"log.txt names what is wrong with them. Mend them, or train without: trainer.val_check_interval=null"
            )

        self.log("val/loss", total / count, rank_zero_only=True)

        if self._by_source:
            means = self._by_source.means(self._over_ranks)
            for name, mean in means.items():
                self.log(f"val/loss/{name}", mean, rank_zero_only=True)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Change a checkpoint's loop counts, in place, so that a run resumed from it goes on to its last step.

        Lightning calls this with the checkpoint that it resumes from. For Lightning a run is one epoch, which the
        checkpoint may call ended: here it is marked as not ended. A checkpoint of `num_steps` steps or more is left as
        it is, since there is nothing more to train.

        Args:
            checkpoint: What Lightning has saved beside tensors. `global_step` and `loops` are read; `loops` is changed.
        """
        if checkpoint["global_step"] >= self.num_steps:
            return

        # Names of Lightning's own, which it reads back after this.
        fit = checkpoint["loops"]["fit_loop"]
        last = fit["epoch_loop.batch_progress"]

        if last["is_last_batch"]:
            # It was the last step of a run that is to be longer now.
            last["is_last_batch"] = False
            # Loggers number their rows by this count. Lightning saves it one too low, and adds one when it goes on,
            # unless the step was saved at its validation.
            num_batches = checkpoint["global_step"]
            totals = last["total"]
            if totals["completed"] < totals["processed"]:
                num_batches -= 1
            loop_state = fit["epoch_loop.state_dict"]
            loop_state["_batches_that_stepped"] = num_batches

        # Lightning trains no more once `max_epochs` epochs, here one, are processed.
        epochs = fit["epoch_progress"]["current"]
        epochs["processed"] = 0
        epochs["completed"] = 0

    def _over_ranks(self, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the sum of a tensor over all ranks, which call this together; with one rank the tensor itself."""
        if self.trainer.world_size == 1:
            return tensor
        total = self.trainer.strategy.reduce(tensor, reduce_op="sum")
        return cast(Tensor, total)

    def _no_sync(self) -> AbstractContextManager[None]:
        """Return a context manager in which a backward adds gradients up on this rank, and exchanges none."""
        strategy = self.trainer.strategy
        # The strategy of one device has no such method.
        if not hasattr(strategy, "block_backward_sync"):
            return nullcontext()
        return strategy.block_backward_sync()


def _count(step: Step) -> _Counts:
    """Return the counts of one rank's Step."""
    reasons = [fault[1] for fault in step["faults"] if fault is not None]
    num_bad = len(reasons)
    num_without_target = reasons.count("no_target")

    return _Counts(
        num_targets=step["num_targets"],
        num_samples=step["num_samples"],
        num_bad=num_bad,
        num_unread=num_bad - num_without_target,
        num_tokens=step["num_tokens"],
        num_images=step["num_images"],
    )
