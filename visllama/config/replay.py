"""Replace `resume=RUN` by the command line that goes on with that run, as it was written down when the run began.

`resume=auto` finds the run: of those with this name, the one with the newest checkpoint. All ranks of a job find the
same, each by itself: it changes only when all of them train. `resume=last` looks at all runs below `paths.outputs`,
whatever their name, and has to find one.

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
"""Keys that a run of an earlier version may have been given, and their names of today."""
FREE = (
    "trainer.",
    "logger.",
    "profiler",
    "paths.",
    "micro_batch_size",
    "data.num_workers",
)
"""Beginnings of the keys that may change when a run goes on: how it computes, and not what."""
_FREE_WORDS = ("data.allow_reorder", "resume")
"""Keys that are typed to go on, and so may change too."""
_FREE_REORDERED = ("seed", "data.")
"""Beginnings of the keys that may change too, with `data.allow_reorder=true`."""
_MOST_METRICS_BYTES = 2**28


class Finished(Exception):
    """Raised when the run that `resume=auto` or `resume=last` finds is finished, so that there is nothing to do."""


def replay(arguments: Sequence[str], verb: str = "train") -> list[str]:
    """Return the arguments that resume the run or the search which `resume=` names.

    The result holds the run's `--config-dir` options, the overrides that the run began with, an override with its
    folder, and last `arguments`. A key in `arguments` takes the place of the run's. Without `resume=`, the arguments
    are returned unchanged; if `resume=auto` finds no run, they are returned without it, so that a new run begins.

    Args:
        arguments: What was typed, without the program and the verb.
        verb: "train" or "evaluate". For "evaluate", which has no checkpoints, `resume=auto` and `resume=last` are
            errors.

    Raises:
        ConfigError: If `resume=` names no run's folder, or `resume=last` finds no run; if other typed arguments do not
            fit; or if the run's command chooses which code runs, and its seal does not show that this user wrote it.
        Finished: If `resume=auto` or `resume=last` finds a run that is finished.
    """
    resumed = [word.partition("=")[2] for word in arguments if word.startswith("resume=")]
    # Of several, Hydra takes the last.
    place = resumed[-1] if resumed else ""
    if place in ("", "null"):
        return list(arguments)

    is_multirun = "-m" in arguments or "--multirun" in arguments
    if place in (AUTO, LAST):
        if verb != "train":
            raise ConfigError(f"resume={place}: {verb} goes on in the folder that is named: give resume=RUN")
        starts_search = any(key_of(word) == "search" for word in arguments)
        # `last` may find a search, which goes on as a whole.
        if is_multirun and place == AUTO and not starts_search:
            raise _is_no_sweep(place)

        arguments = [word for word in arguments if not word.startswith("resume=")]
        newest = find_run(arguments, place)
        if newest is None:
            return arguments
        arguments = [*arguments, override("resume", newest)]
        place = str(newest)

    run = Path(place.strip("'\"")).expanduser()
    if is_search(run):
        return replay_search(run, arguments)
    if is_multirun:
        raise _is_no_sweep(place)
    return _replay_run(run, arguments, verb)


def _replay_run(run: Path, arguments: Sequence[str], verb: str) -> list[str]:
    """Return the arguments that go on with a single run: its own overrides, its folder, then what was typed."""
    command = read_command(run)
    # Somebody else's folder may hold links, which lead elsewhere what is written.
    if not command.is_own:
        check_files(run)

    # The launcher names the folder to a further rank of the run; anybody else has no need to.
    names_folder = False
    for word in arguments:
        if key_of(word) != _UNDER:
            continue
        names_folder = True
        folder = Path(word.partition("=")[2].strip("'"))
        if folder.resolve() != run.resolve():
            raise ConfigError(f"resume={run} goes on in that folder: leave out {_UNDER}")

    replaced_keys = {key_of(word) for word in arguments} | {"resume", "sweep"}
    earlier = [_as_named_now(word) for word in command.overrides]
    kept = [word for word in earlier if key_of(word) not in replaced_keys]
    options = config_dirs(command, arguments)
    code_words = [*options, *filter(chooses_code, kept)]
    check_code(run, command, code_words, arguments, verb)

    folder_words = [] if names_folder else [override(_UNDER, run)]
    return [*options, *kept, *folder_words, *arguments]


def _is_no_sweep(place: str) -> ConfigError:
    """Return the error for a multirun (`-m`) beside `resume=`, which goes on with one run."""
    return ConfigError(
        f"resume={place} goes on with one run: leave out -m, and resume the jobs of a sweep one by one; a search goes "
        f"on as a whole, by its own folder"
    )


def find_run(arguments: Sequence[str], which: str) -> Path | None:
    """Return the folder of the run or search that `resume=auto` or `resume=last` goes on with.

    The run with the newest checkpoint is chosen. If that run is a job of a search, "last" returns the search's folder.
    If the arguments choose a search (`search=`), "auto" returns the newest search with the same `name`.

    Args:
        arguments: What was typed, without `resume=`.
        which: "auto" looks only where these arguments would put a run; "last" looks at all runs below `paths.outputs`.

    Returns:
        The folder. None if "auto" finds nothing, or if Hydra cannot compose the arguments, which is reported later.

    Raises:
        ConfigError: If "last" finds no run with a checkpoint.
        Finished: If the run is finished, and `arguments` ask for nothing that the run did not begin with.
    """
    try:
        composed = _compose(arguments)
    except Exception:
        # The verb composes the same arguments in a moment, and then says what is wrong with them.
        return None

    if which == LAST:
        run = _newest_of_all(Path(composed.paths.outputs))
        if is_search(run.parent):
            return run.parent
    elif composed.search is not None:
        return newest_search(composed)
    else:
        runs_of_name = Path(composed.hydra.run.dir).parent
        run = _newest(runs_of_name.glob(f"*/{COMMAND}"))

    if run is not None and _is_finished(run) and _asks_nothing_new(arguments, run):
        advice = "give another name=, or leave out resume=auto" if which == AUTO else "leave out resume=last"
        raise Finished(f"{run} is finished: nothing to do. Another run: {advice}")
    return run


def _newest_of_all(outputs: Path) -> Path:
    """Return the run with the newest checkpoint of all runs and jobs of sweeps below a folder.

    Raises:
        ConfigError: If there is none.
    """
    single_runs = outputs.glob(f"*/*/{COMMAND}")
    jobs_of_sweeps = outputs.glob(f"*/*/*/{COMMAND}")
    newest = _newest([*single_runs, *jobs_of_sweeps])
    if newest is None:
        raise ConfigError(f"resume=last: there is no run with a checkpoint in paths.outputs={outputs}")
    return newest


def _newest(commands: Iterable[Path]) -> Path | None:
    """Return the folder of the run whose newest checkpoint is the newest of all; None where no run has a checkpoint.

    Args:
        commands: The path of `command.yaml` in each run's folder.
    """
    newest_run = None
    newest_time = 0.0
    for path in commands:
        checkpoints = (path.parent / "checkpoints").glob("step_*")
        times = [checkpoint.stat().st_mtime for checkpoint in checkpoints]
        if times and max(times) > newest_time:
            newest_run = path.parent
            newest_time = max(times)
    return newest_run


def _asks_nothing_new(arguments: Sequence[str], run: Path) -> bool:
    """Return whether a run began with every override that is typed now."""
    words, _ = split_words(arguments)
    return set(words) <= set(read_command(run).overrides)


def _as_named_now(word: str) -> str:
    """Return an override with its key renamed, if an earlier version of visllama had another name for the key."""
    key = key_of(word)
    return word.replace(key, _RENAMED[key], 1) if key in _RENAMED else word


def _compose(arguments: Sequence[str]) -> DictConfig:
    """Return the configuration, with the node `hydra`, of the run of `train` that these arguments would start.

    Hydra's global state is cleared, and `HydraConfig` then holds this configuration.
    """
    words, folders = split_words(arguments)
    # Hydra composes no word of several values; none of them names a folder.
    words = [word for word in words if "=" not in word or not _is_of_several(word)]
    if folders:
        paths = ",".join(str(folder) for folder in folders)
        words.append(f"hydra.searchpath=[{paths}]")

    # Hydra keeps one state for the whole process, which the verb itself initializes later.
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("train", words, return_hydra_config=True)
    GlobalHydra.instance().clear()

    # The resolvers in paths and names ask HydraConfig for the job.
    HydraConfig.instance().set_config(composed)
    return composed


def _is_of_several(word: str) -> bool:
    """Return whether an override has several values, from which a sweep would make jobs."""
    parsed = OverridesParser.create().parse_override(word)
    return parsed.is_sweep_override()


def _is_finished(run: Path) -> bool:
    """Return whether a run's `metrics.json` is there and complete, which is written at the run's end."""
    try:
        metrics = json.loads(read_regular(run / "metrics.json", _MOST_METRICS_BYTES))
        # It is the last entry that a run adds.
        return "provenance" in metrics
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def read_config(path: Path) -> dict:
    """Read the `config.yaml` of a run, and return it as nested dictionaries.

    References (`${...}`) are returned as they are written.

    Args:
        path: The path of the file, which somebody else may have made.

    Raises:
        ConfigError: If the file cannot be read, or is none that a run writes.
    """
    try:
        content = read_regular(path)
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(content)):
            raise ValueError("it has aliases, which can make it endless")

        values = OmegaConf.to_container(OmegaConf.create(content))
        if not isinstance(values, dict) or not values:
            raise ValueError("it holds no keys")
    except Exception as error:  # YAML and OmegaConf raise many types, with no common one
        raise ConfigError(
            f"{printable(path)}: no config of a run ({printable(error)}): give another name= or hydra.run.dir="
        ) from error
    return values


def what_is_safe(run: Path) -> str:
    """Return the end of an error message for a run that could not write a file: what is kept, and what to type next.

    The text names the trained weights if the folder holds any, else the newest checkpoint; if there is neither, it says
    that the run has to begin again.

    Args:
        run: The folder of the run.
    """
    weights = run / "weights"
    if (weights / "visllama.json").is_file():
        return f"the trained weights are safe: mend that, and judge them by  visllama evaluate weights={weights}"

    names = [path.name for path in (run / "checkpoints").glob("step_*")]
    if not names:
        return "no checkpoint is written yet: mend that, and begin again"
    # Names have eight digits: a longer one is a later step.
    newest = max(names, key=lambda name: (len(name), name))
    return f"{newest} is safe in its checkpoints/: mend that, and go on by  {override('resume', run)}"


def differing_keys(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Return the sorted keys whose values differ between two configurations, but must be the same to resume a run.

    Values are compared as in `changed_keys`. Not returned are keys that begin with one of `FREE` (settings of the
    trainer, loggers, paths, ...), `resume`, and `data.allow_reorder`; if `now` sets `data.allow_reorder`, also `seed`
    and `data.*`; if `now` sets `init_from`, also `model.*`.

    Args:
        before: The values that the run began with, by their dotted keys.
        now: The values that it would go on with, by their dotted keys.
    """
    free = FREE + _FREE_WORDS
    if now.get("data.allow_reorder"):
        free += _FREE_REORDERED
    # init_from brings the model: the config that was written has its values, the one that was typed may not.
    if now.get("init_from"):
        free += ("model.",)
    return [key for key in changed_keys(before, now) if not key.startswith(free)]


def changed_keys(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Return the sorted keys whose values differ between two configurations.

    A key that only one of them has differs, unless its value is None. Where `now` has a reference (`${...}`), neither
    the key nor the keys below it are compared.

    Args:
        before: The values of the earlier configuration, by their dotted keys.
        now: The values of the later one, by their dotted keys.
    """
    # A value that still holds a reference holds the folder's name, which changes with each run, or a whole node.
    references = {key for key, value in now.items() if "${" in str(value)}

    changed = []
    for key in {**before, **now}:
        is_compared = references.isdisjoint(_with_parents(key))
        if is_compared and before.get(key) != now.get(key):
            changed.append(key)
    return sorted(changed)


def _with_parents(key: str) -> list[str]:
    """Return a dotted key and the keys above it: "a.b" and "a" for "a.b"."""
    names = key.split(".")
    return [".".join(names[:length]) for length in range(len(names), 0, -1)]
