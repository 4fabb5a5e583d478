"""`resume=FOLDER` of a search: the command line that goes on with the trials that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from visllama.config.command import check_code, check_files, config_dirs, read_command, split_words
from visllama.config.overrides import key_of, override
from visllama.config.trust import chooses_code
from visllama.console import printable
from visllama.errors import ConfigError

JOURNAL = "search.journal"
"""The file in a search's folder that holds its trials."""
_UNDER = "hydra.sweep.dir"
_FREE = (
    "search.n_trials",
    "search.batch",
    "launch",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "logger",
    "paths.",
    "hydra.",
    "micro_batch_size",
    "data.num_workers",
    "plugins",
)
"""What a search that goes on may have otherwise: how many trials, and how they compute."""


def is_search(folder: Path) -> bool:
    """Return whether a folder is that of a search, which holds its jobs."""
    return (folder / JOURNAL).is_file()


def newest_search(composed: DictConfig) -> Path | None:
    """Return the newest search of the name that a configuration has; None where there is none.

    Args:
        composed: The configuration of a search that would begin, with `hydra`.
    """
    journals = Path(composed.hydra.sweep.dir).parent.glob(f"*/{JOURNAL}")
    newest = max(journals, key=lambda path: path.stat().st_mtime, default=None)
    return None if newest is None else newest.parent


def replay_search(folder: Path, arguments: Sequence[str]) -> list[str]:
    """Put the overrides of a search before what was typed beside `resume=`, which no job of it is given.

    Raises:
        ConfigError: If what was typed would make other trials than those that are there.
    """
    command = read_command(folder)
    if not command.is_own:
        check_files(folder)
    typed = [word for word in arguments if key_of(word) != "resume"]
    for word in split_words(typed)[0]:
        if not key_of(word).startswith(_FREE) and word not in command.overrides:
            raise ConfigError(
                f"resume={printable(folder)}: {printable(word)}: a search goes on as it began: leave it out, or begin "
                f"another search; {', '.join(_FREE)} may differ"
            )
    keys = {key_of(word) for word in typed}
    options = config_dirs(command, typed)
    kept = [word for word in command.overrides if key_of(word) not in keys | {"resume", _UNDER}]
    check_code(folder, command, [*options, *filter(chooses_code, kept)], arguments)
    return [*options, *kept, override(_UNDER, folder), *typed]
