"""The loss of each source of a mix, to be looked at: what is trained on is their sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from visllama.model.loss import TokenLoss, token_loss_by_sample
from visllama.text.tokens import IGNORE_INDEX


class LossBySource:
    """Sum losses and supervised tokens by source.

    Args:
        names: Of the sources, the same on every rank.
        device: Where the sums are kept: they are read once, when they are asked for.
        token_loss: The loss of each token; None is the cross-entropy.
    """

    def __init__(self, names: Sequence[str], device: torch.device, token_loss: TokenLoss | None = None) -> None:
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.names, self.sums = list(names), torch.zeros(2, len(names), device=device, dtype=exact)
        self.token_loss = token_loss

    def add(self, logits: Tensor, labels: Tensor, sources: Sequence[str]) -> None:
        """Add a micro-batch; `sources` names that of each sample."""
        places = torch.tensor([self.names.index(name) for name in sources], device=self.sums.device)
        targets = (labels[:, 1:] != IGNORE_INDEX).sum(1)
        both = torch.stack([token_loss_by_sample(logits.detach(), labels, self.token_loss), targets])
        self.sums.index_add_(1, places, both.to(self.sums.dtype))

    def means(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the mean loss a token of each source of which there were any, over all ranks."""
        losses, targets = over_ranks(self.sums).tolist()
        return {name: loss / n for name, loss, n in zip(self.names, losses, targets, strict=True) if n}
