"""Functions that the YAML files call (OmegaConf resolvers): a run's name and id, and values for the first rank alone.

A rank is one process of a run; a run has one for each device that it trains on.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path

from visllama.console import is_first_rank


def on_first_rank(value: object, elsewhere: object = None) -> object:
    """Return `value` if this process is the first rank of its run or the only one, else `elsewhere`.

    YAML calls it as `${on_first_rank:VALUE,ELSEWHERE}`. The launcher's environment variables decide.
    """
    return value if is_first_rank() else elsewhere


def run_id() -> str:
    """Return a new run's folder name (no path): the launcher's id where there is one, else the date and time.

    The id is `SLURM_JOB_ID` or, without it, torchrun's `TORCHELASTIC_RUN_ID` of the environment, so that all ranks get
    the same name. Date and time are local, as `2025-01-31_23-59-00`, and differ from call to call. YAML calls this as
    `${run_id:}`, which keeps the first answer.

    Raises:
        ValueError: If torchrun has started two or more ranks without `--rdzv-id`: they would not agree on a name.
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
    """Return the id by which a tracker (wandb, trackio) knows the run that writes to a folder.

    The id is made of the end of the folder's absolute path and a hash of all of it. A run that is resumed in its folder
    keeps its id, and other folders have other ids.

    Args:
        folder: The run's folder, which need not exist; None if it is not known yet.

    Returns:
        Letters, digits, `_` and `-`, at most 89 characters; None if `folder` is None.
    """
    if folder is None:
        return None

    path = Path(folder).absolute()
    name = f"{path.parent.name}-{path.name}"
    # wandb refuses long ids, and characters such as "/" and ":".
    readable = re.sub(r"[^\w-]+", "-", name)[-80:]
    digest = hashlib.sha256(str(path).encode()).hexdigest()
    return f"{readable}-{digest[:8]}"
