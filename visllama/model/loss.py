"""The loss: cross-entropy summed over supervised tokens. This file alone shifts, masks and sums."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from visllama.text.tokens import IGNORE_INDEX


def token_loss_sum(logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Sum the cross-entropy of each supervised token given what stands before it.

    The caller divides by the number of supervised tokens over all micro-batches and ranks: a mean of means would weigh
    a token by the length of the batch that it happens to stand in.
    """
    predictions = logits[:, :-1].flatten(0, 1)
    if predictions.dtype in (torch.bfloat16, torch.float16):
        predictions = predictions.float()
    return F.cross_entropy(predictions, labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


@torch.no_grad()
def token_loss_by_sample(logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Sum the cross-entropy of each sample's supervised tokens, to be looked at."""
    rows = zip(logits.unsqueeze(1), labels.unsqueeze(1), strict=True)  # one by one: all in fp32 are gigabytes at 7B
    return torch.stack([token_loss_sum(*row) for row in rows])
