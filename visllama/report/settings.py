"""What sets runs apart: the values of their configurations at keys, and the runs of one setting together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from visllama.console import printable
from visllama.errors import ConfigError
from visllama.evaluation.metrics_file import is_number
from visllama.report.judged_run import JudgedRun

ABSENT = "-"
_KIND = ".kind"
_TARGET = "_target_"
_NO_SETTING = (
    "name", "paths.", "logger.", "profiler", "resume", "check_only", "objective", "judge", "plugins", "evaluation.",
    "decoding.", "micro_batch_size", "data.num_workers", "data.log_consumed", "data.allow_reorder", "weights",
    "predictions", "references", "questions",
    *(f"trainer.{name}" for name in (
        "accelerator", "devices", "num_nodes", "threads", "timeout_s", "strategy", "log_every_steps", "requeue",
        "checkpoint_every_steps", "keep_checkpoints", "preempted_exit_code", "val_check_interval",
    )),
)  # fmt: skip
"""How the keys begin that say where, how fast and under which name a run was, or how it was judged."""
_MOST_CHARACTERS = 40


class Setting(NamedTuple):
    """Runs that differ in nothing but what they are averaged over.

    Attributes:
        values: The value of each key of the rows, as a text.
        runs: The runs.
    """

    values: tuple[str, ...]
    runs: list[JudgedRun]


def flat(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield each value of a configuration with its key, as "optim.lr"; a class's short name as `KEY.kind`."""
    if not isinstance(node, Mapping):
        yield prefix, node
        return
    for name, value in node.items():
        key = f"{prefix}.{name}".lstrip(".")
        if name == _TARGET:
            yield f"{prefix}{_KIND}", str(value).rpartition(".")[2]
        else:
            yield from flat(value, key)


def differing_keys(runs: Sequence[JudgedRun], but: Sequence[str] = ()) -> list[str]:
    """Return the keys in whose values runs differ, without those that are no setting, in the order of the first config.

    Where the classes of a part of the model differ, so do its other arguments: the class stands for them.

    Args:
        runs: The runs.
        but: Keys that are left out.
    """
    configs = [dict(flat(run.config)) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    differing = []
    for key in keys:
        if key in but or key.startswith(_NO_SETTING):
            continue
        if len({repr(config.get(key)) for config in configs}) > 1:
            differing.append(key)
    parts = [key.removesuffix(_KIND) for key in differing if key.startswith("model.") and key.endswith(_KIND)]
    arguments = tuple(f"{part}." for part in parts)
    return [key for key in differing if key.endswith(_KIND) or not key.startswith(arguments)]


def value_at(run: JudgedRun, key: str) -> str:
    """Return what a run's configuration holds at a key, as a short text; "-" where it has no such key."""
    for name, value in flat(run.config):
        if name == key:
            return in_words(value)
    return ABSENT


def in_words(value: object) -> str:
    """Return a configuration's value as a short text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    text = printable(value).replace("\n", " ")
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


def labels(keys: Sequence[str]) -> list[str]:
    """Return short headers for keys: the last part of each where no other has it, of `connector.kind` "connector"."""
    shortened = [key.removesuffix(_KIND).rpartition(".")[2] for key in keys]
    return [short if short and shortened.count(short) == 1 else key for short, key in zip(shortened, keys, strict=True)]


def check_keys(what: str, keys: Sequence[str], runs: Sequence[JudgedRun]) -> None:
    """Refuse keys that no run's configuration has.

    Args:
        what: The name under which they were given, for the message.
        keys: The keys.
        runs: The runs.

    Raises:
        ConfigError: Naming the key, and those that were probably meant.
    """
    without = [run.name for run in runs if not run.config]
    if keys and len(without) == len(runs):
        raise ConfigError(f"{what}={','.join(keys)}: {without[0]} holds no config.yaml: leave out {what}=")
    known = list(dict.fromkeys(key for run in runs for key, _ in flat(run.config)))
    for key in keys:
        if key in known:
            continue
        close = [name for name in known if name.rpartition(".")[2] == key] or get_close_matches(key, known, 3)
        below = [name for name in known if name.startswith(f"{key}.")]
        meant = "look into a config.yaml"
        if close or below:
            meant = f"did you mean {printable(', '.join((close or below)[:3]))}?"
        raise ConfigError(f"{what}={printable(key)}: no run's config.yaml has this key: {meant}")


def group(runs: Sequence[JudgedRun], rows: Sequence[str], over: Sequence[str], mixed: bool) -> list[Setting]:
    """Return the runs of each setting together, in the order of their values.

    Args:
        runs: The runs.
        rows: The keys that set rows apart.
        over: The keys over whose values a row is averaged.
        mixed: Whether a row may hold runs that differ in other keys too, or that are repeats.

    Raises:
        ConfigError: If it would, and that is not asked for.
    """
    by_values: dict[tuple[str, ...], list[JudgedRun]] = {}
    for run in runs:
        by_values.setdefault(tuple(value_at(run, key) for key in rows), []).append(run)
    settings = [Setting(values, members) for values, members in by_values.items()]
    if not mixed:
        for setting in settings:
            _check_one_setting(setting, rows, over)
    return sorted(settings, key=lambda setting: [_order(value) for value in setting.values])


def _check_one_setting(setting: Setting, rows: Sequence[str], over: Sequence[str]) -> None:
    """Refuse to average what are different settings, or twice the same run."""
    where = ", ".join(f"{key}={value}" for key, value in zip(rows, setting.values, strict=True))
    of_row = f"the row {where}" if rows else "the one row"
    others = differing_keys(setting.runs, [*rows, *over])
    if others:
        key = others[0]
        by_value = {value_at(run, key): run.name for run in setting.runs}
        (value, run), (other, other_run), *_ = by_value.items()
        raise ConfigError(
            f"rows: {of_row} would be a mean of runs that differ in {', '.join(others[:3])} too ({value} in {run}, "
            f"{other} in {other_run}): name {key} in rows= or over=, leave some out, or average them by mixed=true"
        )
    repeated: dict[tuple[str, ...], str] = {}
    for run in setting.runs:
        values = tuple(value_at(run, key) for key in over)
        if values in repeated:
            same = ", ".join(f"{key}={value}" for key, value in zip(over, values, strict=True)) or "the same values"
            raise ConfigError(
                f"runs: {repeated[values]} and {run.name} are both of {same} in {of_row}: the same run twice has no "
                f"spread: leave one out, or count both by mixed=true"
            )
        repeated[values] = run.name


def _order(value: str) -> tuple[int, float, str]:
    """Return what sorts numbers as numbers, and texts behind them."""
    try:
        number = float(value)
    except ValueError:
        return 1, 0.0, value
    return (0, number, "") if is_number(number) else (1, 0.0, value)
