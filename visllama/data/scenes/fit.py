"""The loop that trains the embedded world's backbones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Report = Callable[[str, int, int, str], None]
"""Shows progress: it is called with what is being done, the steps done, the steps in all, and a word on it."""


def fit(
    name: str, model: nn.Module, losses: Iterator[Callable[[], Tensor]], num_steps: int, lr: float, report: Report
) -> None:
    """Train a model by AdamW, with warm-up and cosine, on a stream of losses.

    Args:
        name: What the model is called in reports.
        model: The model, all of whose parameters are trained.
        losses: Functions that each compute the loss of one step.
        num_steps: Number of steps.
        lr: The highest learning rate, reached after a twentieth of the steps.
        report: Called after each step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    warmup_steps = max(1, num_steps // 20)

    def lr_factor(step: int) -> float:
        rising = (step + 1) / warmup_steps
        falling = 0.5 * (1 + math.cos(math.pi * min(1.0, step / num_steps))) + 1e-3
        return min(rising, falling)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor)
    model.train()
    for step in range(num_steps):
        loss = next(losses)()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(name, step + 1, num_steps, f"loss {loss.item():.3f}")
    model.eval()
