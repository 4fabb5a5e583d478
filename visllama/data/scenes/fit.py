"""The loop that trains the embedded world's backbones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Report = Callable[[str, int, int, str], None]
"""Told of progress: what is being done, steps done, steps in all, a word on it."""


def fit(
    name: str, model: nn.Module, losses: Iterator[Callable[[], Tensor]], num_steps: int, lr: float, report: Report
) -> None:
    """Run AdamW with warm-up and cosine over a stream of losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    warmup = max(1, num_steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(1.0, s / num_steps))) + 1e-3)
    )
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
