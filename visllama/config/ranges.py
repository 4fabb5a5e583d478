"""`search.ranges`: the keys that a search varies, and the values that each of them may take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from visllama.config.overrides import override
from visllama.errors import ConfigError

RANGES = "search.ranges"
_OF_SWEEP = ("search", "sweep")
_NUMBERS = {"low", "high", "log"}
_CHOICES = {"choices"}


class Range(NamedTuple):
    """The values that a search may give to one key.

    Attributes:
        key: The key, or the group, as in an override.
        low: The least value; None for choices.
        high: The greatest value; an `int` beside an `int` as `low` means whole numbers.
        is_log: Whether each decade is drawn alike.
        choices: The values to choose from, each as it is written in an override; empty for numbers.
    """

    key: str
    low: float | None = None
    high: float | None = None
    is_log: bool = False
    choices: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> list[str]:
        """The overrides that give the key its least and its greatest value, or each of the choices."""
        values = self.choices or (self.low, self.high)
        return [self.word(value) for value in values]

    def word(self, value: float | str) -> str:
        """Return the override that gives this key a value: a number with four digits, so that a person can type it."""
        if self.choices:
            return f"{self.key}={value}"
        if self.is_whole:
            return f"{self.key}={int(value)}"
        rounded = float(f"{value:.4g}")
        is_inside = self.low <= rounded <= self.high
        return f"{self.key}={rounded if is_inside else float(value)!r}"


def searched_ranges(typed: Sequence[str], ranges: Mapping) -> list[Range]:
    """Return what a search varies: the ranges of its config, and what was typed as a sweep, which wins.

    A key that was typed with one value is fixed, and no longer searched.

    Args:
        typed: The overrides of the command line.
        ranges: The plain values of `search.ranges`.

    Raises:
        ConfigError: Naming the key, if a range is wrong or none is left.
    """
    found = read_ranges(ranges)
    for parsed in OverridesParser.create().parse_overrides(list(typed)):
        key = parsed.key_or_group
        if parsed.is_sweep_override():
            found[key] = _typed_range(parsed)
        elif not parsed.is_delete():
            found.pop(key, None)
    if not found:
        raise ConfigError(
            f"{RANGES}: no key is left to search: give one, as  '+{RANGES}.optim.lr={{low: 1e-5, high: 0.1}}'"
        )
    return list(found.values())


def job_words(typed: Sequence[str]) -> list[str]:
    """Return the overrides that all jobs of a search share: neither its own, nor those that it gives values to."""
    parsed = OverridesParser.create().parse_overrides(list(typed))
    return [
        word
        for word, each in zip(typed, parsed, strict=True)
        if not each.is_sweep_override() and not is_of_sweep(each.key_or_group)
    ]


def is_of_sweep(key: str) -> bool:
    """Return whether a key chooses the sweep, or the search, that jobs come from: it means nothing to a job."""
    return key.partition(".")[0] in _OF_SWEEP


def read_ranges(ranges: Mapping) -> dict[str, Range]:
    """Read the plain values of `search.ranges`, nested as the config is or below dotted keys.

    Raises:
        ConfigError: Naming the key, what was found, and what a range is.
    """
    found: dict[str, Range] = {}
    for key, value in _leaves(ranges):
        if key in found:
            raise ConfigError(f"{RANGES}.{key}: there are two of it, one below a dotted key: leave one out")
        found[key] = _read_range(key, value)
    return found


def _leaves(node: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the keys that have a range, with what stands there."""
    for name, value in node.items():
        key = f"{prefix}{name}"
        is_range = not isinstance(value, Mapping) or not value or bool((_NUMBERS | _CHOICES) & set(value))
        if is_range:
            yield key, value
        else:
            yield from _leaves(value, f"{key}.")


def _read_range(key: str, value: object) -> Range:
    how = "give {low: A, high: B}, {low: A, high: B, log: true} or {choices: [A, B]}"
    if not isinstance(value, Mapping):
        raise ConfigError(f"{RANGES}.{key}={value}: no range: {how}")
    if set(value) == _CHOICES:
        return _choices(key, value["choices"])
    if not {"low", "high"} <= set(value) <= _NUMBERS:
        raise ConfigError(f"{RANGES}.{key}: found {', '.join(map(str, value)) or 'nothing'}: {how}")
    return _numbers(key, value["low"], value["high"], value.get("log", False))


def _numbers(key: str, low: object, high: object, is_log: object) -> Range:
    """Return a range of numbers, once it is one."""
    for name, end in (("low", low), ("high", high)):
        is_number = isinstance(end, int | float) and not isinstance(end, bool)
        if not is_number or not math.isfinite(end):
            raise ConfigError(f"{RANGES}.{key}.{name}={end}: must be a number, and finite")
    if not isinstance(is_log, bool):
        raise ConfigError(f"{RANGES}.{key}.log={is_log}: must be true or false")
    if low >= high:
        raise ConfigError(f"{RANGES}.{key}: low={low} must be less than high={high}")
    if is_log and low <= 0:
        raise ConfigError(f"{RANGES}.{key}.low={low}: must be more than 0 with log: true: a logarithm has no 0")
    return Range(key, low, high, is_log)


def _choices(key: str, values: object) -> Range:
    """Return a range of choices, once there are several."""
    is_list = isinstance(values, list)
    if not is_list or len(values) < 2:
        raise ConfigError(f"{RANGES}.{key}.choices={values}: must be a list of two values or more")
    return Range(key, choices=tuple(_text(value) for value in values))


def _text(value: object) -> str:
    """Return a value as it is written in an override."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_text(each) for each in value)}]"
    return override("", value).removeprefix("=")


def _typed_range(parsed: Override) -> Range:
    """Return the range that was typed as one of Hydra's sweeps: `a,b`, `range(a,b)`, `interval(a,b)`."""
    key = parsed.key_or_group
    if parsed.is_discrete_sweep():
        return Range(key, choices=tuple(parsed.sweep_string_iterator()))
    interval = parsed.value()
    if not isinstance(interval, IntervalSweep):
        raise ConfigError(f"{parsed.input_line}: a search takes A,B or interval(A,B) or tag(log, interval(A,B))")
    return _numbers(key, interval.start, interval.end, "log" in interval.tags)
