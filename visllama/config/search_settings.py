"""Read and check the group `search`: how many trials a search has, and how their values are drawn."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from visllama.config.choices import choose
from visllama.errors import ConfigError

SAMPLERS = ("tpe", "random")


@dataclass(frozen=True)
class SearchSettings:
    """The settings of a search, checked.

    Attributes:
        sampler: How values are drawn: "tpe" (Optuna's TPE, which learns from earlier trials) or "random".
        n_trials: The number of trials that the search has at its end, those of earlier starts included.
        n_startup_trials: The number of trials that TPE draws at random first.
        batch: The number of trials that are drawn and run at once; None lets the launcher decide.
        prune: Whether a trial that is behind the others is ended early.
        ranges: The plain values of `search.ranges`, which `read_ranges` checks, and this module does not.
    """

    sampler: str
    n_trials: int
    n_startup_trials: int
    batch: int | None
    prune: bool
    ranges: dict[str, Any]


def read_settings(config: DictConfig) -> SearchSettings:
    """Return the settings in the node `search`, after a check of each except for the ranges.

    Args:
        config: The whole configuration of the sweep; it is not changed.

    Raises:
        ConfigError: If a setting is missing, unknown or wrong; the message names the key, the value, and what to do.
    """
    if not OmegaConf.is_dict(config.search):
        raise ConfigError(f"search={config.search}: choose an option of the group: search=tpe or search=random")

    values = cast("dict[str, Any]", OmegaConf.to_container(config.search, resolve=True))
    names = [field.name for field in fields(SearchSettings)]
    for name in values:
        if name not in names:
            raise ConfigError(f"search.{name}: there is no such key; there are {', '.join(names)}")
    for name in names:
        if name not in values:
            raise ConfigError(
                f"no value for search.{name}: give it, or let the YAML begin with  defaults: [tpe, _self_]"
            )

    settings = SearchSettings(**values)
    choose("search.sampler", settings.sampler, SAMPLERS)
    _check_count("search.n_trials", settings.n_trials)
    _check_count("search.n_startup_trials", settings.n_startup_trials)
    _check_count("search.batch", settings.batch, may_be_null=True)

    # A search's YAML has no schema: any value may stand there, whatever the class says.
    if not isinstance(settings.prune, bool):
        raise ConfigError(f"search.prune={settings.prune}: must be true or false")
    if not isinstance(settings.ranges, dict):
        raise ConfigError(f"search.ranges={settings.ranges}: give keys with their ranges, as conf/search/tpe.yaml does")
    return settings


def _check_count(key: str, value: object, may_be_null: bool = False) -> None:
    """Check that a value is a whole number of 1 or more, or null where that is allowed."""
    if value is None and may_be_null:
        return

    # bool is a subclass of int: `true` would pass as 1.
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < 1:
        or_null = ", or null" if may_be_null else ""
        raise ConfigError(f"{key}={value}: must be a whole number of 1 or more{or_null}")
