"""`command.yaml`: the command line of a run or of a search, as it lies in its folder; what is believed of it.

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
    """The command line of a run, as it lies in the run's folder."""

    overrides: list[str]
    """What was typed, `hydra.searchpath` with it."""
    folders: list[str]
    """The user's config folders, as `--config-dir` named them."""
    is_own: bool
    """Whether this user wrote it: else its words choose no code."""


def read_command(run: Path) -> Command:
    """Read a run's command line.

    Raises:
        ConfigError: If the folder holds none.
    """
    try:
        command = _read_ours(run) if (run / COMMAND).is_file() else _read_hydras(run / ".hydra")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(
            f"resume={printable(run)}: no folder of a run ({printable(error)}): give the one that holds its .hydra/"
        ) from error
    return command


def _read_ours(run: Path) -> Command:
    written = yaml.safe_load(read_regular(run / COMMAND))
    overrides, options = _texts(written["overrides"]), _texts(written["options"])
    folders = []
    while options[:1] == ["--config-dir"]:
        _, folder, *options = options
        folders.append(folder)
    if not all(key_of(word) == _SEARCHPATH for word in options):
        raise ValueError(f"options: {options}")
    is_own = is_sealed(run, [written["overrides"], written["options"]], written.get("seal"))
    return Command([*options, *overrides], folders, is_own)


def _read_hydras(folder: Path) -> Command:
    """Read what Hydra wrote, of a run that was killed before `command.yaml` was there; it bears no seal."""
    overrides = _texts(yaml.safe_load(read_regular(folder / "overrides.yaml")))
    hydra = yaml.safe_load(read_regular(folder / "hydra.yaml"))["hydra"]
    folders = [s["path"] for s in hydra["runtime"]["config_sources"] if s["provider"] == "command-line"]
    searched = [word for word in _texts(hydra["overrides"]["hydra"]) if key_of(word) == _SEARCHPATH]
    return Command([*searched, *overrides], _texts(folders), is_own=False)


def _texts(found: object) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise ValueError("it holds no list of words")
    return found


def words_to_go_on(run: Path) -> list[str]:
    """Return what to type to go on with the running job: its folder, and where the user's own configs and code are."""
    running = invocation()
    plugins = [word for word in running.overrides if key_of(word) == "plugins"]
    return [*running.options, *plugins, override("resume", run)]


def write_command(run: Path, more: Sequence[str] = ()) -> None:
    """Write down the running command line, whole or not at all: Hydra's own files are not, when it is killed.

    Args:
        run: The folder of the running job, or of the running search.
        more: Overrides that belong to it and are no job's, as those of a launcher.
    """
    running = invocation()
    overrides = [*running.overrides, *more]
    sealed = seal(run, [overrides, running.options])
    written = {"overrides": overrides, "options": running.options, "seal": sealed}
    write_whole(run / COMMAND, yaml.safe_dump(written))


def check_code(
    run: Path, command: Command, words: Sequence[str], arguments: Sequence[str], verb: str = "train"
) -> None:
    """Refuse words out of a run's folder that choose code, unless this user wrote them there.

    Args:
        run: The folder of the run.
        command: The command line that lies there.
        words: Its words that choose code.
        arguments: What was typed.
        verb: The verb that was typed, for the message.

    Raises:
        ConfigError: With the command to type, which accepts them.
    """
    if words and not command.is_own:
        raise ConfigError(
            f"resume={printable(run)}: its command would choose which code runs, and bears no seal of yours (somebody "
            f"else wrote it, or it was moved here, or before there were seals): {printable(shlex.join(words))}. If you "
            f"trust that, type it:  visllama {verb} {printable(shlex.join([*words, *arguments]))}"
        )


def check_files(run: Path) -> None:
    """Refuse a folder of somebody else's in which a file is a link: what the run writes would go elsewhere.

    Raises:
        ConfigError: Naming the link, or what else is no file, as a pipe that would be waited for.
    """
    for folder, folders, files in os.walk(run):
        for name in [*folders, *files]:
            path = Path(folder) / name
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # another rank's temporary file, which is gone again
                continue
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise ConfigError(
                    f"resume={printable(run)}: {printable(path)} is a link, or no regular file, and the run bears no "
                    f"seal of yours: put the file itself there, or begin anew from its weights/ by init_from="
                )
        if Path(folder) == run and "wandb" in folders:
            folders.remove("wandb")  # whose links are its own, and made anew


def split_words(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Return the overrides among arguments, and the folders that `--config-dir` names."""
    words, folders = [], []
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before in CONFIG_DIR:
            folders.append(Path(word).resolve())
        elif not word.startswith("-"):
            words.append(word)
    return words, folders


def config_dirs(command: Command, arguments: Sequence[str]) -> list[str]:
    """Return the `--config-dir` options of a command, unless another folder was typed."""
    names_folder = any(word.partition("=")[0] in CONFIG_DIR for word in arguments)
    return [] if names_folder else [word for folder in command.folders for word in (CONFIG_DIR[0], folder)]
