"""Measure the loss of each data source by itself, to be logged; training uses the loss of all together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visllama.model.loss import TokenLoss, token_loss_by_sample
from visllama.text.tokens import IGNORE_INDEX


class LossBySource:
    """Add up the loss of each data source over micro-batches, and then return its mean over the supervised tokens.

    A supervised token is one that the model learns to predict. The first token of a sample is never one.

    Args:
        names: The names of all sources, in the same order on every rank.
        device: The device of the sums. They stay there until `means`, so that no micro-batch waits for the GPU.
        token_loss: A function of logits and token ids that returns the loss of each token; None is the cross-entropy.
    """

    def __init__(self, names: Sequence[str], device: torch.device, token_loss: TokenLoss | None = None) -> None:
        # mps has no fp64.
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.names = list(names)

        # The first row holds losses, the second the numbers of supervised tokens.
        self.sums = torch.zeros(2, len(names), device=device, dtype=exact)
        self.token_loss = token_loss

    def add(self, logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"], sources: Sequence[str]) -> None:
        """Add the losses of one micro-batch to the sums of its samples' sources; no gradient is computed.

        Args:
            logits: The model's output at each of T positions of B samples; position t predicts token t + 1.
            labels: The token id at each position, or IGNORE_INDEX where it is not supervised; not shifted.
            sources: The name of each sample's source, one of `names`.

        Raises:
            ValueError: If a source is not one of `names`.
        """
        indices = [self.names.index(name) for name in sources]
        columns = torch.tensor(indices, device=self.sums.device)

        losses = token_loss_by_sample(logits.detach(), labels, self.token_loss)
        is_target = labels[:, 1:] != IGNORE_INDEX
        num_targets = is_target.sum(1)

        by_sample = torch.stack([losses, num_targets]).to(self.sums.dtype)
        self.sums.index_add_(1, columns, by_sample)

    def means(self, over_ranks: Callable[[Float[Tensor, "2 S"]], Float[Tensor, "2 S"]]) -> dict[str, float]:
        """Return the mean loss of a supervised token by the source's name, over all that was added on all ranks.

        Sources without supervised tokens are left out. The sums stay as they are. All ranks have to call it together.

        Args:
            over_ranks: A function that returns the sum over all ranks of a tensor of the S sources: their losses in the
                first row, their numbers of supervised tokens in the second.
        """
        sums = over_ranks(self.sums)
        losses, counts = sums.tolist()

        means = {}
        for name, loss, count in zip(self.names, losses, counts, strict=True):
            if count:
                means[name] = loss / count

        return means
