"""`resume=RUN`: the command line that goes on with a run, from what was written down of the one that began it.

What lies in a folder chooses no code: `plugins`, `--config-dir`, `hydra.*` and a `_target_` that is not ours are taken
from there only if this user wrote them there (`trust.py`).

`resume=auto` finds the run: of those with this name, the one with the newest checkpoint. All ranks of a job find the
same, each by itself: it changes only when all of them train. `resume=last` is the same of all runs below
`paths.outputs`, whatever their name, and has to find one.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from visllama.config.invocation import invocation
from visllama.config.overrides import key_of, override
from visllama.config.schema import conf_dir
from visllama.config.trust import chooses_code, is_sealed, seal
from visllama.console import printable
from visllama.errors import ConfigError
from visllama.files import read_regular, write_whole

_UNDER, _SEARCHPATH = "hydra.run.dir", "hydra.searchpath"
_CONFIG_DIR = ("--config-dir", "-cd")
COMMAND = "command.yaml"
AUTO, LAST = "auto", "last"
_RENAMED = {"trainer.val_fraction": "trainer.val_check_interval"}
"""Keys that a run of an earlier version may have been given, and what they are called now."""
FREE = (
    "trainer.",
    "logger.",
    "profiler",
    "paths.",
    "micro_batch_size",
    "data.num_workers",
    "data.allow_reorder",
    "resume",
)
"""What a run that goes on may have otherwise: how it computes, and not what."""
_FREE_REORDERED = ("seed", "data.")


class Finished(Exception):
    """There is nothing to go on with: the run is finished."""


def replay(arguments: Sequence[str], verb: str = "train") -> list[str]:
    """Put the overrides of the run that `resume=` names before what was typed, which wins; without it, change nothing.

    Args:
        arguments: What was typed.
        verb: The verb: `train`, or `evaluate`, whose runs have no checkpoints to find the newest by.

    Raises:
        ConfigError: If it names no run's folder.
    """
    named = [word.partition("=")[2] for word in arguments if word.startswith("resume=")]
    if not named or named[-1] in ("", "null"):
        return list(arguments)
    if "-m" in arguments or "--multirun" in arguments:
        raise ConfigError(
            f"resume={named[-1]} goes on with one run: leave out -m, and resume the jobs of a sweep one by one"
        )
    if named[-1] in (AUTO, LAST) and verb != "train":
        raise ConfigError(f"resume={named[-1]}: {verb} goes on in the folder that is named: give resume=RUN")
    if named[-1] in (AUTO, LAST):
        arguments = [word for word in arguments if not word.startswith("resume=")]
        found = find_run(arguments, named[-1])
        if found is None:
            return arguments
        arguments = [*arguments, override("resume", found)]
        named = [str(found)]
    run = Path(named[-1].strip("'\"")).expanduser()
    command = _read(run)
    if not command.is_own:
        _check_files(run)
    typed = {key_of(word) for word in arguments}
    places = [word.partition("=")[2].strip("'") for word in arguments if key_of(word) == _UNDER]
    if any(Path(place).resolve() != run.resolve() for place in places):  # another rank of the run is given its folder
        raise ConfigError(f"resume={run} goes on in that folder: leave out {_UNDER}")
    names_folder = any(word.partition("=")[0] in _CONFIG_DIR for word in arguments)
    options = [] if names_folder else [word for folder in command.folders for word in (_CONFIG_DIR[0], folder)]
    written = map(_as_named_now, command.overrides)
    kept = [word for word in written if key_of(word) not in typed | {"resume"}]
    _check_code(run, command, [*options, *filter(chooses_code, kept)], arguments, verb)
    return [*options, *kept, *([] if places else [override(_UNDER, run)]), *arguments]


def _check_code(run: Path, command: Command, words: Sequence[str], arguments: Sequence[str], verb: str) -> None:
    """Refuse words out of a run's folder that choose code, unless this user wrote them there.

    Raises:
        ConfigError: With the command to type, which accepts them.
    """
    if words and not command.is_own:
        raise ConfigError(
            f"resume={printable(run)}: its command would choose which code runs, and bears no seal of yours (somebody "
            f"else wrote it, or it was moved here, or before there were seals): {printable(shlex.join(words))}. If you "
            f"trust that, type it:  visllama {verb} {printable(shlex.join([*words, *arguments]))}"
        )


def _check_files(run: Path) -> None:
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


def find_run(arguments: Sequence[str], which: str) -> Path | None:
    """Return the run with the newest checkpoint, which `resume=auto` or `resume=last` goes on with.

    Args:
        arguments: What was typed beside it.
        which: `auto` looks where these arguments would put a run, and may find none; `last` looks at all runs.

    Raises:
        ConfigError: If `last` finds none.
        Finished: If it has nothing left to do.
    """
    try:
        composed = _compose(arguments)
    except Exception:  # what does not compose is refused in a moment, with what is wrong
        return None
    if which == AUTO:
        found = _newest(Path(composed.hydra.run.dir).parent.glob(f"*/{COMMAND}"))
    else:
        outputs = Path(composed.paths.outputs)
        found = _newest([*outputs.glob(f"*/*/{COMMAND}"), *outputs.glob(f"*/*/*/{COMMAND}")])  # the latter of sweeps
        if found is None:
            raise ConfigError(f"resume=last: there is no run with a checkpoint in paths.outputs={outputs}")
    if found is not None and _is_finished(found) and set(_split(arguments)[0]) <= set(_read(found).overrides):
        advice = "give another name=, or leave out resume=auto" if which == AUTO else "leave out resume=last"
        raise Finished(f"{found} is finished: nothing to do. Another run: {advice}")
    return found


def _newest(commands: Iterable[Path]) -> Path | None:
    """Return, of the runs that these command lines began, the one with the newest checkpoint."""
    runs = [path.parent for path in commands]
    newest = {run: max((p.stat().st_mtime for p in (run / "checkpoints").glob("step_*")), default=0) for run in runs}
    return max((run for run in runs if newest[run]), key=newest.get, default=None)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Return the overrides among arguments, and the folders that `--config-dir` names."""
    words, folders = [], []
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before in _CONFIG_DIR:
            folders.append(Path(word).resolve())
        elif not word.startswith("-"):
            words.append(word)
    return words, folders


def _as_named_now(word: str) -> str:
    """Return an override of an earlier version's run with the key's name of today."""
    key = key_of(word)
    return word.replace(key, _RENAMED[key], 1) if key in _RENAMED else word


def _compose(arguments: Sequence[str]) -> DictConfig:
    """Return the configuration, with `hydra`, of the run that these arguments would start."""
    words, folders = _split(arguments)
    if folders:
        words.append(f"hydra.searchpath=[{','.join(map(str, folders))}]")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("train", words, return_hydra_config=True)
    GlobalHydra.instance().clear()
    HydraConfig.instance().set_config(composed)
    return composed


def _is_finished(run: Path) -> bool:
    try:
        return "provenance" in json.loads(read_regular(run / "metrics.json", 2**28))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def read_config(path: Path) -> dict:
    """Read the `config.yaml` of a run as plain data.

    Raises:
        ConfigError: If no run wrote it.
    """
    try:
        content = read_regular(path)
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(content)):
            raise ValueError("it has aliases, which can make it endless")
        written = OmegaConf.to_container(OmegaConf.create(content))
        if not isinstance(written, dict) or not written:
            raise ValueError("it holds no keys")
    except Exception as error:  # YAML's and OmegaConf's differ by what is wrong
        raise ConfigError(
            f"{printable(path)}: no config of a run ({printable(error)}): give another name= or hydra.run.dir="
        ) from error
    return written


def what_is_safe(run: Path) -> str:
    """Return which checkpoint a run that could not write goes on from, and what to type."""
    if (run / "weights" / "visllama.json").is_file():
        return (
            f"the trained weights are safe: mend that, and judge them by  visllama evaluate weights={run / 'weights'}"
        )
    saved = [path.name for path in (run / "checkpoints").glob("step_*")]
    if not saved:
        return "no checkpoint is written yet: mend that, and begin again"
    newest = max(saved, key=lambda name: (len(name), name))
    return f"{newest} is safe in its checkpoints/: mend that, and go on by  {override('resume', run)}"


def differing_keys(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Name the keys that a run may not differ in when it goes on; `before` and `now` are flat configs."""
    free = FREE + (_FREE_REORDERED if now.get("data.allow_reorder") else ())
    free += ("model.",) if now.get("init_from") else ()  # which brings the model
    known = {key: value for key, value in now.items() if "${" not in str(value)}  # others hold the folder's name
    return sorted(key for key, value in known.items() if before.get(key) != value and not key.startswith(free))


class Command(NamedTuple):
    """The command line of a run, as it lies in the run's folder."""

    overrides: list[str]
    """What was typed, `hydra.searchpath` with it."""
    folders: list[str]
    """The user's config folders, as `--config-dir` named them."""
    is_own: bool
    """Whether this user wrote it: else its words choose no code."""


def _read(run: Path) -> Command:
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


def write_command(run: Path) -> None:
    """Write down the running job's command line, whole or not at all: Hydra's own files are not, when it is killed."""
    running = invocation()
    sealed = seal(run, [running.overrides, running.options])
    written = {"overrides": running.overrides, "options": running.options, "seal": sealed}
    write_whole(run / COMMAND, yaml.safe_dump(written))
