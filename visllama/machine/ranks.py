"""What a config asks of the ranks of a run: which of them writes, and by which name they all know it."""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path

from visllama.console import is_first_rank


def on_first_rank(value: object, elsewhere: object = None) -> object:
    """Return a value on the first rank, and another on all others; a resolver."""
    return value if is_first_rank() else elsewhere


def run_id() -> str:
    """Name a run's folder: by the launcher's own id where there is one, so that all ranks agree, else by date and time.

    Raises:
        ValueError: If torchrun has started ranks on several nodes without naming them.
    """
    for variable in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        if os.environ.get(variable, "none") != "none":
            return os.environ[variable]
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        raise ValueError(
            "torchrun has given its ranks no name in common, by which they would write one run folder: add --rdzv-id="
            "NAME (the same on every node, another for every run), or give hydra.run.dir="
        )
    return time.strftime("%Y-%m-%d_%H-%M-%S")


def run_key(folder: str | None) -> str | None:
    """Name a run for wandb by its folder: the same for a resumed one, another for every other; None before it is."""
    if folder is None:
        return None
    path = Path(folder).absolute()
    readable = re.sub(r"[^\w-]+", "-", f"{path.parent.name}-{path.name}")[-80:]
    return f"{readable}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
