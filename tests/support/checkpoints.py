"""Small checkpoints: a model of three layers, of which two are trained."""

from __future__ import annotations

import torch
from torch import nn

from visllama.checkpoint.folder import name_of, write_checkpoint
from visllama.checkpoint.state import state_of

REST = {"global_step": 4, "loops": {"fit_loop": {}}, "optimizer_groups": []}


class Parts(nn.Sequential):
    trainable = ("1", "2")


def trained(steps: int = 1):
    torch.manual_seed(0)
    model = Parts(nn.Linear(3, 4), nn.Linear(4, 2), nn.BatchNorm1d(2))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def write(run, step: int, steps: int = 1):
    model, optimizer = trained(steps)
    tensors, groups = state_of(model, optimizer)
    path = run / "checkpoints" / name_of(step)
    write_checkpoint(path, tensors, REST | {"global_step": step, "optimizer_groups": groups})
    return path
