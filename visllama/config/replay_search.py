"""Replace `resume=FOLDER` of a search by the command line that runs the trials which are missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from visllama.config.command import check_code, check_files, config_dirs, read_command, split_words
from visllama.config.overrides import in_words, key_of, override
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
"""Beginnings of the keys that may change when a search goes on: how many trials there are, and how they compute."""


def is_search(folder: Path) -> bool:
    """Return whether a folder is that of a search: whether it holds the journal of its trials."""
    return (folder / JOURNAL).is_file()


def newest_search(composed: DictConfig) -> Path | None:
    """Return the folder of the search whose journal changed last, among those with the name of a configuration.

    Args:
        composed: The configuration of the search that would begin otherwise, with the node `hydra`.

    Returns:
        The folder; None where there is no search of that name.
    """
    searches = Path(composed.hydra.sweep.dir).parent
    journals = searches.glob(f"*/{JOURNAL}")
    newest = max(journals, key=lambda path: path.stat().st_mtime, default=None)
    return None if newest is None else newest.parent


def replay_search(folder: Path, arguments: Sequence[str]) -> list[str]:
    """Return the arguments that resume a search.

    The result holds the `--config-dir` options and the overrides that the search began with, an override with its
    folder, and last what was typed. A typed key takes the place of the search's.

    Args:
        folder: The folder of the search, which holds its `command.yaml`.
        arguments: What was typed; `resume=` in it is left out of the result, since no job of a search reads it.

    Raises:
        ConfigError: If the folder holds no command; if a typed override would change the trials; or if the command
            chooses which code runs, and no seal (a hash with this user's secret) shows that this user wrote it.
    """
    command = read_command(folder)
    # Somebody else's folder may hold links, which lead elsewhere what is written.
    if not command.is_own:
        check_files(folder)

    typed = [word for word in arguments if key_of(word) != "resume"]
    typed_words, _ = split_words(typed)
    for word in typed_words:
        if not key_of(word).startswith(_FREE) and word not in command.overrides:
            raise ConfigError(
                f"resume={printable(folder)}: {printable(word)}: a search goes on as it began: leave it out, or begin "
                f"another search; {in_words(_FREE)} may differ"
            )

    # The folder is where it lies now, which may be another place than where it began.
    replaced_keys = {key_of(word) for word in typed} | {"resume", _UNDER}
    kept = [word for word in command.overrides if key_of(word) not in replaced_keys]
    options = config_dirs(command, typed)
    code_words = [*options, *filter(chooses_code, kept)]
    # The message repeats all that was typed, `resume=` included.
    check_code(folder, command, code_words, arguments)
    return [*options, *kept, override(_UNDER, folder), *typed]
