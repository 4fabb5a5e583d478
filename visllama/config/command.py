"""`command.yaml`: the command line of a run or of a search, kept in its folder, and which of its words are believed.

What lies in a folder chooses no code: `plugins`, `--config-dir`, `hydra.*` and a `_target_` that is not ours are taken
from there only if this user wrote them there (`trust.py`).
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from visllama.config.invocation import invocation
from visllama.config.overrides import key_of, override
from visllama.config.trust import is_sealed, seal
from visllama.console import printable
from visllama.errors import ConfigError
from visllama.files import read_regular, write_whole

COMMAND = "command.yaml"
CONFIG_DIR = ("--config-dir", "-cd")
_SEARCHPATH = "hydra.searchpath"


class Command(NamedTuple):
    """The command line of a run, as it lies in the run's folder.

    Attributes:
        overrides: The overrides that were typed, with that of `hydra.searchpath`.
        folders: The folders of the user's configs, as `--config-dir` named them.
        is_own: Whether this user wrote the command: the words of anybody else choose no code.
    """

    overrides: list[str]
    folders: list[str]
    is_own: bool


def read_command(run: Path) -> Command:
    """Read a run's command line.

    Args:
        run: The folder of the run.

    Raises:
        ConfigError: If the folder holds none.
    """
    try:
        # A run that was killed at its very start has only what Hydra wrote.
        if not (run / COMMAND).is_file():
            return _read_hydras(run / ".hydra")
        return _read_ours(run)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(
            f"resume={printable(run)}: no folder of a run ({printable(error)}): give the one that holds its .hydra/"
        ) from error


def _read_ours(run: Path) -> Command:
    """Read `command.yaml`, and check its seal."""
    written = yaml.safe_load(read_regular(run / COMMAND))
    overrides = _texts(written["overrides"])
    options = _texts(written["options"])
    is_own = is_sealed(run, [overrides, options], written.get("seal"))

    # `--config-dir DIR` comes first, once for each folder, then overrides of the search path.
    folders = []
    while options[:1] == ["--config-dir"]:
        _, folder, *options = options
        folders.append(folder)
    if not all(key_of(word) == _SEARCHPATH for word in options):
        raise ValueError(f"options: {options}")
    return Command([*options, *overrides], folders, is_own)


def _read_hydras(folder: Path) -> Command:
    """Read what Hydra wrote about a run that has no `command.yaml`; it bears no seal."""
    overrides = _texts(yaml.safe_load(read_regular(folder / "overrides.yaml")))
    hydra = yaml.safe_load(read_regular(folder / "hydra.yaml"))["hydra"]

    sources = hydra["runtime"]["config_sources"]
    folders = [source["path"] for source in sources if source["provider"] == "command-line"]
    hydra_words = _texts(hydra["overrides"]["hydra"])
    searchpaths = [word for word in hydra_words if key_of(word) == _SEARCHPATH]
    return Command([*searchpaths, *overrides], _texts(folders), is_own=False)


def _texts(value: object) -> list[str]:
    """Return a value that was read, after a check that it is a list of strings."""
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError("it holds no list of words")
    return value


def words_to_go_on(run: Path) -> list[str]:
    """Return what to type to go on with the running job: its folder, and where the user's own configs and code are.

    Args:
        run: The folder of the running job.
    """
    running = invocation()
    plugins = [word for word in running.overrides if key_of(word) == "plugins"]
    return [*running.options, *plugins, override("resume", run)]


def write_command(run: Path, more: Sequence[str] = ()) -> None:
    """Write the running command line, whole or not at all.

    Hydra's own files may be cut off, when the job is killed.

    Args:
        run: The folder of the running job, or of the running search.
        more: Overrides that belong to it and are no job's, as those of a launcher.
    """
    running = invocation()
    overrides = [*running.overrides, *more]
    written = {
        "overrides": overrides,
        "options": running.options,
        "seal": seal(run, [overrides, running.options]),
    }
    write_whole(run / COMMAND, yaml.safe_dump(written))


def check_code(
    run: Path, command: Command, words: Sequence[str], arguments: Sequence[str], verb: str = "train"
) -> None:
    """Check that words out of a run's folder which choose code were written there by this user.

    Args:
        run: The folder of the run.
        command: The command line that lies there.
        words: The words of the command line that choose code.
        arguments: What was typed.
        verb: The verb that was typed, for the message.

    Raises:
        ConfigError: If somebody else may have written them. The message has the command to type, which accepts them.
    """
    if words and not command.is_own:
        accepting = [*words, *arguments]
        raise ConfigError(
            f"resume={printable(run)}: its command would choose which code runs, and bears no seal of yours (somebody "
            f"else wrote it, or it was moved here, or before there were seals): {printable(shlex.join(words))}. If you "
            f"trust that, type it:  visllama {verb} {printable(shlex.join(accepting))}"
        )


def check_files(run: Path) -> None:
    """Check that a folder of somebody else's holds no link: what the run writes would go elsewhere.

    Args:
        run: The folder.

    Raises:
        ConfigError: Naming the link, or what else is no file, as a pipe that would be waited for.
    """
    for folder, folders, files in os.walk(run):
        for name in [*folders, *files]:
            path = Path(folder) / name
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                # Another rank's temporary file, which is gone again.
                continue
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise ConfigError(
                    f"resume={printable(run)}: {printable(path)} is a link, or no regular file, and the run bears no "
                    f"seal of yours: put the file itself there, or begin anew from its weights/ by init_from="
                )

        # wandb keeps links of its own there, and makes them anew. os.walk enters no folder that is taken out here.
        if Path(folder) == run and "wandb" in folders:
            folders.remove("wandb")


def split_words(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Return the overrides among arguments, and the folders that `--config-dir` names.

    Args:
        arguments: What was typed, without the program and the verb.
    """
    words = []
    folders = []
    previous_words = ["", *arguments]
    for previous, word in zip(previous_words, arguments, strict=False):
        if previous in CONFIG_DIR:
            folders.append(Path(word).resolve())
        elif not word.startswith("-"):
            words.append(word)
    return words, folders


def config_dirs(command: Command, arguments: Sequence[str]) -> list[str]:
    """Return the `--config-dir` options of a command; none where another folder was typed.

    Args:
        command: The command line of a run.
        arguments: What was typed.
    """
    for word in arguments:
        if word.partition("=")[0] in CONFIG_DIR:
            return []

    options = []
    for folder in command.folders:
        options += [CONFIG_DIR[0], folder]
    return options
