"""Resolvers of the config for runs of several ranks: which rank writes, and the name that all ranks give the run."""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path

from visllama.console import is_first_rank


def on_first_rank(value: object, elsewhere: object = None) -> object:
    """Return `value` on the first rank, and `elsewhere` on all others; a resolver of the config."""
    return value if is_first_rank() else elsewhere


def run_id() -> str:
    """Return the name of a run's folder: the launcher's id, on which all ranks agree, else date and time.

    Raises:
        ValueError: If torchrun has started ranks on several nodes without naming them.
    """
    for variable in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        # torchrun writes "none" where it was given no id.
        if os.environ.get(variable, "none") != "none":
            return os.environ[variable]

    # Date and time would differ between ranks by a second now and then.
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        raise ValueError(
            "torchrun has given its ranks no name in common, by which they would write one run folder: add --rdzv-id="
            "NAME (the same on every node, another for every run), or give hydra.run.dir="
        )

    return time.strftime("%Y-%m-%d_%H-%M-%S")


def run_key(folder: str | None) -> str | None:
    """Return the id of a run in wandb, made from its folder; None as long as it has no folder.

    A resumed run keeps its id, and no two folders have the same.
    """
    if folder is None:
        return None

    path = Path(folder).absolute()
    name = f"{path.parent.name}-{path.name}"
    # wandb refuses long ids, and characters such as "/" and ":".
    readable = re.sub(r"[^\w-]+", "-", name)[-80:]
    digest = hashlib.sha256(str(path).encode()).hexdigest()
    return f"{readable}-{digest[:8]}"
