"""`resume=RUN`: the command line that goes on with a run, from what was written down of the one that began it.

`resume=auto` finds the run: of those with this name, the one with the newest checkpoint. All ranks of a job find the
same, each by itself: it changes only when all of them train. `resume=last` is the same of all runs below
`paths.outputs`, whatever their name, and has to find one.

A search (`search=`) is named by the folder that its jobs lie in, and goes on as a whole (`replay_search.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from visllama.config.command import COMMAND, check_code, check_files, config_dirs, read_command, split_words
from visllama.config.overrides import key_of, override
from visllama.config.replay_search import is_search, newest_search, replay_search
from visllama.config.schema import conf_dir
from visllama.config.trust import chooses_code
from visllama.console import printable
from visllama.errors import ConfigError
from visllama.files import read_regular

_UNDER = "hydra.run.dir"
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
    if named[-1] in (AUTO, LAST) and verb != "train":
        raise ConfigError(f"resume={named[-1]}: {verb} goes on in the folder that is named: give resume=RUN")
    is_multirun = "-m" in arguments or "--multirun" in arguments
    starts_search = any(key_of(word) == "search" for word in arguments)
    if named[-1] in (AUTO, LAST):
        if is_multirun and not starts_search:
            raise _is_no_sweep(named[-1])
        arguments = [word for word in arguments if not word.startswith("resume=")]
        found = find_run(arguments, named[-1])
        if found is None:
            return arguments
        arguments = [*arguments, override("resume", found)]
        named = [str(found)]
    run = Path(named[-1].strip("'\"")).expanduser()
    if is_search(run):
        return replay_search(run, arguments)
    if is_multirun:
        raise _is_no_sweep(named[-1])
    command = read_command(run)
    if not command.is_own:
        check_files(run)
    typed = {key_of(word) for word in arguments}
    places = [word.partition("=")[2].strip("'") for word in arguments if key_of(word) == _UNDER]
    if any(Path(place).resolve() != run.resolve() for place in places):  # another rank of the run is given its folder
        raise ConfigError(f"resume={run} goes on in that folder: leave out {_UNDER}")
    options = config_dirs(command, arguments)
    written = map(_as_named_now, command.overrides)
    kept = [word for word in written if key_of(word) not in typed | {"resume", "sweep"}]
    check_code(run, command, [*options, *filter(chooses_code, kept)], arguments, verb)
    return [*options, *kept, *([] if places else [override(_UNDER, run)]), *arguments]


def _is_no_sweep(named: str) -> ConfigError:
    return ConfigError(
        f"resume={named} goes on with one run: leave out -m, and resume the jobs of a sweep one by one; a search goes "
        f"on as a whole, by its own folder"
    )


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
    if composed.search is not None and which == AUTO:
        return newest_search(composed)
    if which == AUTO:
        found = _newest(Path(composed.hydra.run.dir).parent.glob(f"*/{COMMAND}"))
    else:
        outputs = Path(composed.paths.outputs)
        found = _newest([*outputs.glob(f"*/*/{COMMAND}"), *outputs.glob(f"*/*/*/{COMMAND}")])  # the latter of sweeps
        if found is None:
            raise ConfigError(f"resume=last: there is no run with a checkpoint in paths.outputs={outputs}")
        if is_search(found.parent):  # the run is one of its trials
            return found.parent
    if (
        found is not None
        and _is_finished(found)
        and set(split_words(arguments)[0]) <= set(read_command(found).overrides)
    ):
        advice = "give another name=, or leave out resume=auto" if which == AUTO else "leave out resume=last"
        raise Finished(f"{found} is finished: nothing to do. Another run: {advice}")
    return found


def _newest(commands: Iterable[Path]) -> Path | None:
    """Return, of the runs that these command lines began, the one with the newest checkpoint."""
    runs = [path.parent for path in commands]
    newest = {run: max((p.stat().st_mtime for p in (run / "checkpoints").glob("step_*")), default=0) for run in runs}
    return max((run for run in runs if newest[run]), key=newest.get, default=None)


def _as_named_now(word: str) -> str:
    """Return an override of an earlier version's run with the key's name of today."""
    key = key_of(word)
    return word.replace(key, _RENAMED[key], 1) if key in _RENAMED else word


def _compose(arguments: Sequence[str]) -> DictConfig:
    """Return the configuration, with `hydra`, of the run that these arguments would start."""
    words, folders = split_words(arguments)
    # Hydra composes no word of several values; none of them names a folder.
    words = [word for word in words if "=" not in word or not _is_of_several(word)]
    if folders:
        words.append(f"hydra.searchpath=[{','.join(map(str, folders))}]")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("train", words, return_hydra_config=True)
    GlobalHydra.instance().clear()
    HydraConfig.instance().set_config(composed)
    return composed


def _is_of_several(word: str) -> bool:
    """Return whether an override is a sweep's, of several values."""
    return OverridesParser.create().parse_override(word).is_sweep_override()


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
