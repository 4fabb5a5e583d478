"""The loss: cross-entropy, or a function of the user's, summed over the *supervised* tokens, those that are learned.

This file alone shifts labels, leaves out what is not supervised, and sums.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from visllama.text.tokens import IGNORE_INDEX

TokenLoss = Callable[[Float[Tensor, "M V"], Int[Tensor, " M"]], Float[Tensor, " M"]]
"""A loss of the user's own: a function of the logits of M supervised tokens and of their ids (the targets), which
returns the loss of each of the M tokens."""


def token_loss_sum(
    logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"], token_loss: TokenLoss | None = None
) -> Float[Tensor, ""]:
    """Return the sum (no mean) of the losses of all supervised tokens in a batch, computed in fp32 at least.

    A token is supervised if its label is not IGNORE_INDEX (-100); without such tokens the sum is zero. The caller
    divides by the number of supervised tokens over all micro-batches and ranks, so that all tokens have equal weight.

    Args:
        logits: The model's output; the scores at position t are those of the token at t + 1.
        labels: For each position of the input ids, the same id if the token is supervised, else IGNORE_INDEX. They are
            not shifted by the caller; the first label of each row is not used.
        token_loss: Function of the logits (M, V) and the ids (M) of the supervised tokens, which returns the M losses;
            None means the cross-entropy in nats. It is not called if no token is supervised.
    """
    # The logits at a position are those of the token after it, so the last position predicts nothing.
    predictions = logits[:, :-1].flatten(0, 1)
    targets = labels[:, 1:].flatten()

    is_half = predictions.dtype in (torch.bfloat16, torch.float16)
    if is_half:
        predictions = predictions.float()

    if token_loss is None:
        return F.cross_entropy(predictions, targets, ignore_index=IGNORE_INDEX, reduction="sum")

    # A function of the user's need not know IGNORE_INDEX, so it gets the supervised tokens alone.
    supervised = targets != IGNORE_INDEX
    predictions = predictions[supervised]
    if len(predictions) == 0:
        # The sum of nothing is zero, and still leads gradients (zeros) back to the model.
        return predictions.sum()

    losses = token_loss(predictions, targets[supervised])
    return losses.sum()


@torch.no_grad()
def token_loss_by_sample(
    logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"], token_loss: TokenLoss | None = None
) -> Float[Tensor, " B"]:
    """Return, for each sample of a batch, the sum of the losses of its supervised tokens, without gradients.

    A token is supervised if its label is not IGNORE_INDEX (-100); a sample without such tokens has the sum zero.

    Args:
        logits: The model's output; the scores at position t are those of the token at t + 1.
        labels: For each position of the input ids, the same id if the token is supervised, else IGNORE_INDEX. They are
            not shifted by the caller; the first label of each row is not used.
        token_loss: Function of the logits (M, V) and the ids (M) of a sample's supervised tokens, which returns the M
            losses; None means the cross-entropy in nats.
    """
    # One by one: the logits of all samples in fp32 are gigabytes at 7B.
    rows = zip(logits.unsqueeze(1), labels.unsqueeze(1), strict=True)

    loss_sums = []
    for row_logits, row_labels in rows:
        loss_sum = token_loss_sum(row_logits, row_labels, token_loss)
        loss_sums.append(loss_sum)
    return torch.stack(loss_sums)
