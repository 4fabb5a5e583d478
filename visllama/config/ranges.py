"""Read `search.ranges`: the keys that a search varies, and the values that each of them may take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from visllama.config.overrides import written_value
from visllama.errors import ConfigError

RANGES = "search.ranges"
_OF_SWEEP = ("search", "sweep")
_NUMBERS = {"low", "high", "log"}
"""The keys of a range of numbers."""
_CHOICES = {"choices"}
"""The keys of a range of choices."""


class Range(NamedTuple):
    """The values that a search may give to one key: the numbers between two ends, or a list of choices.

    Attributes:
        key: The dotted key or the group, as in an override, for example "optim.lr" or "model/connector".
        low: The least number, which is included; None for choices.
        high: The greatest number, which is included; None for choices. If both ends are `int`, all values are whole.
        is_log: Whether numbers are drawn evenly on a logarithmic scale.
        choices: The values to choose from, each as it is written in an override; empty for numbers.
    """

    key: str
    low: float | None = None
    high: float | None = None
    is_log: bool = False
    choices: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether all values are whole numbers; False for choices."""
        ends = (self.low, self.high)
        return all(isinstance(end, int) for end in ends)

    @property
    def ends(self) -> list[str]:
        """The overrides that set the key to its least and its greatest number, or to each of the choices in turn."""
        if self.choices:
            return [self.word(choice) for choice in self.choices]
        low, high = self._bounds()
        return [self.word(low), self.word(high)]

    def word(self, value: float | str) -> str:
        """Return the override `key=value` that sets the key to a value of this range.

        A number is rounded to four significant digits, so that a person can type it, unless it would then leave the
        range; of a whole-number range, digits behind the point are cut off. A choice is written unchanged.

        Args:
            value: A number between the ends, or one of the choices.
        """
        if self.choices:
            return f"{self.key}={value}"
        if self.is_whole:
            return f"{self.key}={int(value)}"

        exact = float(value)
        rounded = float(f"{exact:.4g}")
        low, high = self._bounds()
        # Rounding may leave the range by its last digit: then all digits are written.
        is_inside = low <= rounded <= high
        written = rounded if is_inside else exact
        return f"{self.key}={written!r}"

    def _bounds(self) -> tuple[float, float]:
        """Return both ends of a range of numbers."""
        low = self.low
        high = self.high
        assert low is not None and high is not None, f"{self.key} has choices in place of numbers"
        return low, high


def searched_ranges(typed: Sequence[str], ranges: Mapping) -> list[Range]:
    """Return the ranges that a search draws values from: those of its config, then those that were typed as a sweep.

    A typed sweep (`key=a,b` or `key=interval(a,b)`) takes the place of the config's range for that key. A key that was
    typed with one value is fixed, and its range is left out.

    Args:
        typed: The overrides of the command line, without options such as `-m`.
        ranges: The plain values of `search.ranges`.

    Raises:
        ConfigError: If a range is wrong, or none is left; the message names the key.
    """
    by_key = read_ranges(ranges)
    for parsed in OverridesParser.create().parse_overrides(list(typed)):
        key = parsed.key_or_group
        # `~key` neither fixes nor searches it.
        if parsed.is_sweep_override():
            by_key[key] = _typed_range(parsed)
        elif not parsed.is_delete():
            by_key.pop(key, None)

    if not by_key:
        raise ConfigError(
            f"{RANGES}: no key is left to search: give one, as  '+{RANGES}.optim.lr={{low: 1e-5, high: 0.1}}'"
        )
    return list(by_key.values())


def job_words(typed: Sequence[str]) -> list[str]:
    """Return those of a search's overrides that each of its jobs is given too, unchanged and in their order.

    Left out are overrides of `search` and `sweep`, and those with several values, from which the search draws.

    Args:
        typed: The overrides of the command line, without options such as `-m`.
    """
    overrides = OverridesParser.create().parse_overrides(list(typed))

    words = []
    for word, parsed in zip(typed, overrides, strict=True):
        if parsed.is_sweep_override() or is_of_sweep(parsed.key_or_group):
            continue
        words.append(word)
    return words


def is_of_sweep(key: str) -> bool:
    """Return whether a key is `search` or `sweep`, or lies below one of them, and so means nothing to a single job."""
    first_name = key.partition(".")[0]
    return first_name in _OF_SWEEP


def read_ranges(ranges: Mapping) -> dict[str, Range]:
    """Return the ranges that `search.ranges` holds, by their dotted keys, in the order of the config.

    Args:
        ranges: The plain values of `search.ranges`: a range stands below nested mappings or below a dotted key.

    Raises:
        ConfigError: If a range is wrong or given twice; the message names the key, and says how a range is written.
    """
    by_key: dict[str, Range] = {}
    for key, value in _leaves(ranges):
        # YAML allows `optim.lr:` beside `optim: {lr:}`: these are one key to Hydra.
        if key in by_key:
            raise ConfigError(f"{RANGES}.{key}: is given twice, once below a dotted key: leave one out")
        by_key[key] = _read_range(key, value)
    return by_key


def _leaves(node: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield each dotted key that has a range, and the plain value that was written as its range, which may be wrong."""
    names_of_ranges = _NUMBERS | _CHOICES
    for name, value in node.items():
        key = f"{prefix}{name}"
        # An empty mapping is a range too, and a wrong one: the error message names it.
        is_node = isinstance(value, Mapping) and len(value) > 0
        if is_node and names_of_ranges.isdisjoint(value):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _read_range(key: str, value: object) -> Range:
    """Return the range that a plain value describes.

    Raises:
        ConfigError: If it describes none.
    """
    place = f"{RANGES}.{key}"
    advice = "give {low: A, high: B}, {low: A, high: B, log: true} or {choices: [A, B]}"
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place}={value}: is no range: {advice}")

    names = set(value)
    if names == _CHOICES:
        return _choices(key, value["choices"])
    if not {"low", "high"} <= names <= _NUMBERS:
        listed = ", ".join(map(str, value)) or "nothing"
        raise ConfigError(f"{place}: found {listed}: {advice}")

    low = value["low"]
    high = value["high"]
    is_log = value.get("log", False)
    return _numbers(key, low, high, is_log)


def _numbers(key: str, low: object, high: object, is_log: object) -> Range:
    """Return a range of numbers, after a check of its ends and of `log`."""
    place = f"{RANGES}.{key}"
    least = _checked_number(f"{place}.low", low)
    greatest = _checked_number(f"{place}.high", high)
    if not isinstance(is_log, bool):
        raise ConfigError(f"{place}.log={is_log}: must be true or false")

    if least >= greatest:
        raise ConfigError(f"{place}: low={low} must be less than high={high}")
    if is_log and least <= 0:
        raise ConfigError(f"{place}.low={low}: must be more than 0 with log: true: a logarithm has no 0")
    return Range(key, least, greatest, is_log)


def _checked_number(key: str, value: object) -> int | float:
    """Return a value unchanged, after a check that it is a finite number."""
    # bool is a subclass of int: `low: true` would pass as 1.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ConfigError(f"{key}={value}: must be a number, and finite")
    return value


def _choices(key: str, values: object) -> Range:
    """Return a range of choices, after a check that they are a list of two or more."""
    is_list = isinstance(values, list)
    if not is_list or len(values) < 2:
        raise ConfigError(f"{RANGES}.{key}.choices={values}: must be a list of two values or more")

    choices = tuple(written_value(value) for value in values)
    return Range(key, choices=choices)


def _typed_range(parsed: Override) -> Range:
    """Return the range that was typed as one of Hydra's sweeps: `a,b`, `range(a,b)`, `interval(a,b)`."""
    key = parsed.key_or_group
    # `a,b`, `choice(a,b)` and `range(a,b)` are all lists of values to Hydra.
    if parsed.is_discrete_sweep():
        choices = tuple(parsed.sweep_string_iterator())
        return Range(key, choices=choices)

    interval = parsed.value()
    if not isinstance(interval, IntervalSweep):
        raise ConfigError(f"{parsed.input_line}: a search takes A,B or interval(A,B) or tag(log, interval(A,B))")
    is_log = "log" in interval.tags
    return _numbers(key, interval.start, interval.end, is_log)
