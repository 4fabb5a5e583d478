"""Train the embedded world's tiny CLIP and tiny LLaMA: the training loop that both share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

Report = Callable[[str, int, int, str], None]
"""A function that shows progress. Its arguments: what is trained, the steps done, the steps in all, and a remark."""


def fit(
    name: str,
    model: nn.Module,
    losses: Iterator[Callable[[], Float[Tensor, ""]]],
    num_steps: int,
    lr: float,
    report: Report,
) -> None:
    """Train all parameters of a model in place by AdamW, with warm-up and cosine decay, and leave it in eval mode.

    Args:
        name: The first argument of each call of `report`, the name of what is trained.
        model: The model.
        losses: Functions that each compute the loss of one step; `num_steps` of them are taken.
        num_steps: Number of steps.
        lr: The highest learning rate, reached after about a twentieth of the steps.
        report: Called after each step, with the loss as its remark.

    Raises:
        StopIteration: If `losses` ends before `num_steps` functions were taken.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    warmup_steps = max(1, num_steps // 20)

    # The lower of a rising line and a falling cosine; the small term keeps the last steps from a learning rate of 0.
    def lr_factor(step: int) -> float:
        rising = (step + 1) / warmup_steps
        progress = min(1.0, step / num_steps)
        falling = 0.5 * (1 + math.cos(math.pi * progress)) + 1e-3
        return min(rising, falling)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor)
    model.train()

    for step in range(num_steps):
        compute_loss = next(losses)
        loss = compute_loss()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(name, step + 1, num_steps, f"loss {loss.item():.3f}")
    model.eval()
