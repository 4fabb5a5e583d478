"""The loss: cross-entropy summed over supervised tokens. This file alone shifts, masks and sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from visllama.text.tokens import IGNORE_INDEX

TokenLoss = Callable[[Float[Tensor, "M V"], Int[Tensor, " M"]], Float[Tensor, " M"]]
"""A loss of the user's own: of the logits of M supervised tokens and their ids, the loss of each."""


def token_loss_sum(
    logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"], token_loss: TokenLoss | None = None
) -> Float[Tensor, ""]:
    """Sum the loss of each supervised token given what stands before it.

    The caller divides by the number of supervised tokens over all micro-batches and ranks: a mean of means would weigh
    a token by the length of the batch that it happens to stand in.

    Args:
        logits: The model's output.
        labels: The ids of the supervised tokens, IGNORE_INDEX elsewhere; not shifted.
        token_loss: The loss of each token; None is the cross-entropy.
    """
    predictions = logits[:, :-1].flatten(0, 1)
    if predictions.dtype in (torch.bfloat16, torch.float16):
        predictions = predictions.float()
    targets = labels[:, 1:].flatten()
    if token_loss is None:
        return F.cross_entropy(predictions, targets, ignore_index=IGNORE_INDEX, reduction="sum")

    supervised = targets != IGNORE_INDEX
    predictions = predictions[supervised]
    if len(predictions) == 0:  # a dummy's: zero, with a way back for the gradients
        return predictions.sum()
    return token_loss(predictions, targets[supervised]).sum()


@torch.no_grad()
def token_loss_by_sample(
    logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"], token_loss: TokenLoss | None = None
) -> Float[Tensor, " B"]:
    """Sum the loss of each sample's supervised tokens, to be looked at."""
    rows = zip(logits.unsqueeze(1), labels.unsqueeze(1), strict=True)  # one by one: all in fp32 are gigabytes at 7B
    return torch.stack([token_loss_sum(*row, token_loss) for row in rows])
