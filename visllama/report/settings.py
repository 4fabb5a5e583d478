"""Find the keys in whose values the configurations of runs differ, and group runs by such values.

A key is a path in a configuration, such as "optim.lr". Keys that change no result (names, paths, machines), and those
of how a run was judged, are no settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from visllama.console import printable
from visllama.errors import ConfigError
from visllama.evaluation.metrics_file import is_number
from visllama.report.judged_run import JudgedRun

ABSENT = "-"
"""The text for a value that is not there."""
_KIND = ".kind"
_TARGET = "_target_"
_NO_SETTING = (
    # The name of a run, where it is written and logged, and how it is started again.
    "name",
    "paths.",
    "logger.",
    "profiler",
    "resume",
    "check_only",
    "plugins",
    "trainer.log_every_steps",
    "trainer.requeue",
    "trainer.checkpoint_every_steps",
    "trainer.keep_checkpoints",
    "trainer.preempted_exit_code",
    # How fast it is, and on which machines.
    "micro_batch_size",
    "data.num_workers",
    "data.log_consumed",
    "data.allow_reorder",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.threads",
    "trainer.timeout_s",
    "trainer.strategy",
    # How it is judged: `conditions.py` compares that.
    "objective",
    "judge",
    "evaluation.",
    "decoding.",
    "weights",
    "predictions",
    "references",
    "questions",
    "trainer.val_check_interval",
)
"""The beginnings of keys that are no setting: the place, speed and name of a run, and how it was judged."""
_MOST_CHARACTERS = 40


class Setting(NamedTuple):
    """The runs of one row of a table, which have the same values at the keys in which rows differ.

    Attributes:
        values: The value at each of these keys as text, in the order of the keys.
        runs: The runs.
    """

    values: tuple[str, ...]
    runs: list[JudgedRun]


def flat(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield each value of a configuration as a pair of its key, such as "optim.lr", and the value; lists are values.

    A class (`_target_`) is yielded under `KEY.kind`, with its name without the module.

    Args:
        node: The configuration, as mappings in mappings.
        prefix: The key of `node` itself; "" for a whole configuration.
    """
    if not isinstance(node, Mapping):
        yield prefix, node
        return

    for name, value in node.items():
        if name == _TARGET:
            _, _, class_name = str(value).rpartition(".")
            yield f"{prefix}{_KIND}", class_name
        else:
            key = f"{prefix}.{name}".lstrip(".")
            yield from flat(value, key)


def differing_keys(runs: Sequence[JudgedRun], but: Sequence[str] = ()) -> list[str]:
    """Return the keys in whose values the configurations of runs differ, in the order of the configurations.

    Left out are keys that change no result (names, paths, machines) or belong to how a run was judged. Where a part of
    the model is of different classes, only its class (`model.PART.kind`) is returned, and none of its arguments.

    Args:
        runs: The runs. A run without a key differs from one that has it.
        but: Further keys that are left out of the result, for example "seed"; each has to be the whole key.
    """
    configs = [dict(flat(run.config)) for run in runs]
    keys: dict[str, None] = {}
    for values_by_key in configs:
        keys.update(dict.fromkeys(values_by_key))

    keys_that_differ = []
    for key in keys:
        if key in but or key.startswith(_NO_SETTING):
            continue
        # As text, because lists cannot stand in a set.
        values = {repr(values_by_key.get(key)) for values_by_key in configs}
        if len(values) > 1:
            keys_that_differ.append(key)
    return _without_arguments(keys_that_differ)


def _without_arguments(differing: Sequence[str]) -> list[str]:
    """Return these keys without the arguments of each part of the model whose class is among them."""
    # Another class takes other arguments: the class stands for all of them.
    prefixes = []
    for key in differing:
        if key.startswith("model.") and key.endswith(_KIND):
            part = key.removesuffix(_KIND)
            prefixes.append(f"{part}.")
    prefixes_of_arguments = tuple(prefixes)

    kept_keys = []
    for key in differing:
        is_argument = key.startswith(prefixes_of_arguments) and not key.endswith(_KIND)
        if not is_argument:
            kept_keys.append(key)
    return kept_keys


def value_at(run: JudgedRun, key: str) -> str:
    """Return the value of a run's configuration at a key, as a short text; "-" where it has no such key.

    Args:
        run: The run.
        key: The key, as `flat` yields it.
    """
    for name, value in flat(run.config):
        if name == key:
            return in_words(value)
    return ABSENT


def in_words(value: object) -> str:
    """Return a configuration's value as a text: "none", "true", "0.001", or up to 40 characters and "..."."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"

    text = printable(value).replace("\n", " ")
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:_MOST_CHARACTERS]}..."


def labels(keys: Sequence[str]) -> list[str]:
    """Return a header for each key: its last part, as "lr" for "optim.lr", or the whole key if another ends so too."""
    last_parts = []
    for key in keys:
        _, _, last_part = key.removesuffix(_KIND).rpartition(".")
        last_parts.append(last_part)

    # At the root of a configuration `_target_` has the key ".kind", of which nothing is left.
    headers = []
    for last_part, key in zip(last_parts, keys, strict=True):
        is_clear = last_part != "" and last_parts.count(last_part) == 1
        headers.append(last_part if is_clear else key)
    return headers


def check_keys(what: str, keys: Sequence[str], runs: Sequence[JudgedRun]) -> None:
    """Check that each of these keys is in the configuration of at least one run.

    Args:
        what: The option that holds the keys ("rows" or "over"), for the message.
        keys: The keys.
        runs: The runs.

    Raises:
        ConfigError: If a key is in no run's configuration, or no run has a configuration. The message names the key,
            and up to three that were probably meant.
    """
    runs_without_config = [run.name for run in runs if not run.config]
    if keys and len(runs_without_config) == len(runs):
        all_keys = ",".join(keys)
        run_name = runs_without_config[0]
        raise ConfigError(f"{what}={all_keys}: {run_name} holds no config.yaml: leave out {what}=")

    # A key that some runs have is enough: a value of "-" tells the others apart.
    keys_of_runs = (key for run in runs for key, _ in flat(run.config))
    known_keys = list(dict.fromkeys(keys_of_runs))
    for key in keys:
        if key in known_keys:
            continue

        hint = "look into a config.yaml"
        similar_keys = _similar_keys(key, known_keys)
        if similar_keys:
            listed_keys = printable(", ".join(similar_keys))
            hint = f"did you mean {listed_keys}?"
        unknown_key = printable(key)
        raise ConfigError(f"{what}={unknown_key}: no run's config.yaml has this key: {hint}")


def _similar_keys(key: str, known_keys: Sequence[str]) -> list[str]:
    """Return up to three keys that were probably meant: first those that end in the key, at last those below it."""
    # People leave out the beginning: "lr" for "optim.lr".
    same_end = []
    for name in known_keys:
        _, _, last_part = name.rpartition(".")
        if last_part == key:
            same_end.append(name)
    if same_end:
        return same_end[:3]

    # Then typing errors.
    close = get_close_matches(key, known_keys, 3)
    if close:
        return close
    below = [name for name in known_keys if name.startswith(f"{key}.")]
    return below[:3]


def group(runs: Sequence[JudgedRun], rows: Sequence[str], over: Sequence[str], mixed: bool) -> list[Setting]:
    """Group runs by their values at the keys `rows`, and return the groups sorted by these values, numbers first.

    Args:
        runs: The runs.
        rows: The keys whose values divide runs into groups; without any, all runs are one group.
        over: The keys over whose values a row is averaged, for example "seed".
        mixed: Whether a group may hold runs that differ in further keys, or that have the same values at `over`.

    Raises:
        ConfigError: If `mixed` is false, and runs of a group differ in a further key that `differing_keys` returns, or
            have the same values at `over`. The message names the key, or two runs.
    """
    by_values: dict[tuple[str, ...], list[JudgedRun]] = {}
    for run in runs:
        values = tuple(value_at(run, key) for key in rows)
        by_values.setdefault(values, []).append(run)

    settings = [Setting(values, members) for values, members in by_values.items()]
    if not mixed:
        for setting in settings:
            _check_one_setting(setting, rows, over)

    def sort_key(setting: Setting) -> list[tuple[int, float, str]]:
        return [_order(value) for value in setting.values]

    return sorted(settings, key=sort_key)


def _check_one_setting(setting: Setting, rows: Sequence[str], over: Sequence[str]) -> None:
    """Refuse to average different settings, or the same run twice.

    Raises:
        ConfigError: If the runs of the row are such.
    """
    of_row = f"the row {_pairs(rows, setting.values)}" if rows else "the one row"
    runs = setting.runs
    further_keys = differing_keys(runs, [*rows, *over])
    if further_keys:
        # One key with two of its values is enough to see which runs do not belong together.
        key = further_keys[0]
        run_of_value = {value_at(run, key): run.name for run in runs}
        (value, run_name), (other, other_run), *_ = run_of_value.items()
        listed_keys = ", ".join(further_keys[:3])
        raise ConfigError(
            f"rows: {of_row} would be a mean of runs that differ in {listed_keys} too ({value} in {run_name}, {other} "
            f"in {other_run}): name {key} in rows= or over=, leave some out, or average them by mixed=true"
        )

    run_of_values: dict[tuple[str, ...], str] = {}
    for run in runs:
        values = tuple(value_at(run, key) for key in over)
        if values in run_of_values:
            earlier_run = run_of_values[values]
            same = _pairs(over, values) or "the same values"
            raise ConfigError(
                f"runs: {earlier_run} and {run.name} are both of {same} in {of_row}: the same run twice has no "
                f"spread: leave one out, or count both by mixed=true"
            )
        run_of_values[values] = run.name


def _pairs(keys: Sequence[str], values: Sequence[str]) -> str:
    """Return keys and values as "seed=1, optim.lr=0.001"."""
    pairs = zip(keys, values, strict=True)
    return ", ".join(f"{key}={value}" for key, value in pairs)


def _order(value: str) -> tuple[int, float, str]:
    """Return a sort key that compares numbers as numbers, and puts texts behind them."""
    try:
        number = float(value)
    except ValueError:
        return 1, 0.0, value

    # "nan" and "inf" are texts too: nan would leave the order to chance.
    if not is_number(number):
        return 1, 0.0, value
    return 0, number, ""
