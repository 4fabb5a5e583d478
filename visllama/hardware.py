"""Which device and precision a run uses when it is not told."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def find_device(accelerator: str) -> torch.device:
    """Give the device of a Lightning accelerator's name; "auto" is cuda, else mps, else cpu."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def find_precision(trainer: Mapping) -> str:
    """Give Lightning's name of the precision; "auto" is bf16-mixed on cuda, else 32-true."""
    if trainer["precision"] != "auto":
        return str(trainer["precision"])
    return "bf16-mixed" if find_device(trainer["accelerator"]).type == "cuda" else "32-true"


def frozen_dtype(precision: str) -> torch.dtype:
    """Give the dtype in which frozen weights are loaded under a precision."""
    return {"bf": torch.bfloat16, "16": torch.float16, "64": torch.float64}.get(precision[:2], torch.float32)
