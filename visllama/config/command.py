"""Read and write `command.yaml`, the command line of a run or of a search that is kept in its folder.

Words of it that choose which code runs (`plugins`, `--config-dir`, `hydra.*`, and a `_target_` outside visllama and the
libraries that it allows) are used only if this user wrote them there, which a seal shows (`trust.py`).
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
    """The command line of a run, as it was read from the run's folder.

    Attributes:
        overrides: The overrides `key=value` that the run was started with. Overrides of `hydra.searchpath` come first.
        folders: The folders of the user's own configs, which `--config-dir` named.
        is_own: Whether the command's seal (a hash with this user's secret) shows that this user wrote it for this
            folder. If False, words of the command that choose which code runs must not be used.
    """

    overrides: list[str]
    folders: list[str]
    is_own: bool


def read_command(run: Path) -> Command:
    """Read the command line of a run or a search from its folder.

    The file is `command.yaml`. If it is missing, the files in `.hydra/` are read; these bear no seal, so that
    `is_own` is False.

    Args:
        run: The folder of the run or the search.

    Raises:
        ConfigError: If the folder holds neither, or a file that cannot be read as one of them.
    """
    try:
        # A run that was killed at its very start has only what Hydra wrote.
        if not (run / COMMAND).is_file():
            return _read_hydras(run / ".hydra")
        return _read_ours(run)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        # A folder may be anybody's: what lies there may be of any type and form.
        raise ConfigError(
            f"resume={printable(run)}: no folder of a run ({printable(error)}): give the one that holds its .hydra/"
        ) from error


def _read_ours(run: Path) -> Command:
    """Read `command.yaml` from a run's folder, and check its seal.

    Raises:
        ValueError: If its contents are not of the form that `write_command` writes. Other types are raised too.
    """
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
    """Read a command line from the files that Hydra writes into `.hydra/`; they bear no seal, so `is_own` is False.

    Args:
        folder: The folder `.hydra` of the run.
    """
    overrides = _texts(yaml.safe_load(read_regular(folder / "overrides.yaml")))
    hydra = yaml.safe_load(read_regular(folder / "hydra.yaml"))["hydra"]

    sources = hydra["runtime"]["config_sources"]
    folders = [source["path"] for source in sources if source["provider"] == "command-line"]
    hydra_words = _texts(hydra["overrides"]["hydra"])
    searchpaths = [word for word in hydra_words if key_of(word) == _SEARCHPATH]
    return Command([*searchpaths, *overrides], _texts(folders), is_own=False)


def _texts(value: object) -> list[str]:
    """Return a value unchanged, after a check that it is a list of strings.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError("it holds no list of words")
    return value


def words_to_go_on(run: Path) -> list[str]:
    """Return the arguments of `visllama train` that resume the running Hydra job.

    The arguments are the job's `--config-dir` options and `hydra.searchpath=`, its `plugins=`, and `resume=FOLDER`, in
    this order. They are not quoted for a shell.

    Args:
        run: The folder of the running job.

    Raises:
        ValueError: If no Hydra job is running.
    """
    running = invocation()
    # All other overrides lie in the run's folder, from where `resume=` replays them.
    plugins = [word for word in running.overrides if key_of(word) == "plugins"]
    return [*running.options, *plugins, override("resume", run)]


def write_command(run: Path, more: Sequence[str] = ()) -> None:
    """Write the command line of the running Hydra job to `command.yaml` in a folder, with this user's seal.

    The seal is a hash with a secret of the user's; it is null if the secret cannot be stored. The file is written whole
    or not at all, since Hydra's own files may be cut off when the job is killed.

    Args:
        run: The folder of the running job, or of the running search.
        more: Overrides to add behind the typed ones, for example those that a search's launcher needs.

    Raises:
        WriteFailed: If the file cannot be written.
        ValueError: If no Hydra job is running.
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
    """Check that this user wrote the command of a folder, if words of the command choose which code runs.

    The check passes if there are no such words, or if the command bears this user's seal (`command.is_own`).

    Args:
        run: The folder of the run or the search.
        command: The command line that was read from that folder.
        words: The words of that command for which `chooses_code` in `trust.py` returns True; may be empty.
        arguments: The arguments that the user has typed now; the message repeats them.
        verb: The verb that was typed, for the message.

    Raises:
        ConfigError: If somebody else may have written the words. The message has the command that accepts them.
    """
    if words and not command.is_own:
        accepting = [*words, *arguments]
        raise ConfigError(
            f"resume={printable(run)}: its command would choose which code runs, and bears no seal of yours (somebody "
            f"else wrote it, or it was moved here, or before there were seals): {printable(shlex.join(words))}. If you "
            f"trust that, type it:  visllama {verb} {printable(shlex.join(accepting))}"
        )


def check_files(run: Path) -> None:
    """Check that a folder which somebody else may have made holds only regular files and folders, at any depth.

    Through a link, a run would write outside of its folder; at a pipe, it would wait forever. The folder `wandb` at the
    top is not entered, since wandb itself keeps links there.

    Args:
        run: The folder of the run or the search.

    Raises:
        ConfigError: At the first link, pipe or the like; the message names it.
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
    """Return the overrides among typed arguments, and the folders that `--config-dir DIR` or `--config-dir=DIR` names.

    Overrides keep their order, and folders are made absolute. Other options are left out.

    Args:
        arguments: What was typed, without the program and the verb.
    """
    words = []
    folders = []
    # Each word is seen with the one before it, since `--config-dir` and its folder are two words.
    previous_words = ["", *arguments]
    for previous, word in zip(previous_words, arguments, strict=False):
        option, has_value, value = word.partition("=")
        if previous in CONFIG_DIR:
            folders.append(Path(word).resolve())
        elif option in CONFIG_DIR and has_value:
            folders.append(Path(value).resolve())
        elif not word.startswith("-"):
            words.append(word)
    return words, folders


def config_dirs(command: Command, arguments: Sequence[str]) -> list[str]:
    """Return the `--config-dir` options of a run's command, as words to put before its overrides.

    Args:
        command: The command line that was read from the run's folder.
        arguments: What was typed now.

    Returns:
        "--config-dir" and the folder, for each folder of the command. If `arguments` hold a `--config-dir`, that one
        takes the place of the run's, and the list is empty.
    """
    for word in arguments:
        if word.partition("=")[0] in CONFIG_DIR:
            return []

    options = []
    for folder in command.folders:
        options += [CONFIG_DIR[0], folder]
    return options
