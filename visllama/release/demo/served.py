"""The models that are served: one thing at a time each, and so many that wait."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from visllama.errors import ConfigError
from visllama.inference.pipeline import Pipeline

MOST_BEAMS, MOST_NEW_TOKENS, MOST_TEMPERATURE = 8, 512, 5.0
"""What a client may ask for at most: one request holds the model that long."""
MOST_PICTURES = 8
"""The largest number of pictures in a request; each may fill 150 MB when it is decoded."""


class Busy(ConfigError):
    """As many wait for a model as may."""


class Served:
    """A model that several clients share.

    Args:
        name: The name that a client chooses it by.
        pipeline: The model.
        decoding: Its settings of `generate` where a client says nothing.
        max_waiting: The largest number of clients that wait for it.
    """

    def __init__(self, name: str, pipeline: Pipeline, decoding: Mapping[str, Any], max_waiting: int) -> None:
        self.name, self.pipeline, self.decoding = name, pipeline, dict(decoding)
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._count = threading.Lock()
        self._turn = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[Pipeline]:
        """Wait until the model is free, and keep it.

        Raises:
            Busy: If too many wait.
        """
        with self._count:
            if self._num_waiting >= self._max_waiting:
                raise Busy(f"{self._num_waiting} requests wait already: try again in a while")
            self._num_waiting += 1
        try:
            self._turn.acquire()
        finally:
            with self._count:
                self._num_waiting -= 1
        # Not `with`: what is streamed may be taken up by one thread and ended by another.
        try:
            yield self.pipeline
        finally:
            self._turn.release()

    def settings(
        self, num_beams: object = None, temperature: object = None, max_new_tokens: object = None
    ) -> dict[str, Any]:
        """Return the settings of `generate` for a client's wishes; None leaves what the model has.

        Args:
            num_beams: 1 is greedy.
            temperature: Texts are sampled with it.
            max_new_tokens: The largest number of new tokens.

        Raises:
            ConfigError: If one is of another type, or out of its range.
        """
        settings = dict(self.decoding)
        if num_beams is not None:
            settings |= {"num_beams": _whole("num_beams", num_beams, MOST_BEAMS), "do_sample": False}
        if temperature is not None:
            is_number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
            if not is_number or not math.isfinite(temperature) or not 0 < temperature <= MOST_TEMPERATURE:
                raise ConfigError(f"temperature: a number above 0, and at most {MOST_TEMPERATURE:g}")
            settings |= {"do_sample": True, "temperature": float(temperature)}
        if max_new_tokens is not None:
            settings["max_new_tokens"] = _whole("max_new_tokens", max_new_tokens, MOST_NEW_TOKENS)
        return settings


def _whole(key: str, value: object, most: int) -> int:
    is_whole = isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer()
    if not is_whole or not 1 <= value <= most:
        raise ConfigError(f"{key}: a whole number from 1 to {most}")
    return int(value)


class Shelf:
    """The models by their names; the first one is the default.

    Args:
        models: At least one.
    """

    def __init__(self, models: Sequence[Served]) -> None:
        self._models = {model.name: model for model in models}

    @property
    def names(self) -> list[str]:
        return list(self._models)

    def __iter__(self) -> Iterator[Served]:
        return iter(self._models.values())

    def choose(self, name: object = None) -> Served:
        """Return the model of this name; None is the first one.

        Raises:
            ConfigError: If there is none of this name.
        """
        if name is None:
            return next(iter(self))
        if not isinstance(name, str) or name not in self._models:
            raise ConfigError(f"weights: one of {', '.join(self.names)}")
        return self._models[name]


def names_of(folders: Sequence[str | Path]) -> list[str]:
    """Return a name for each weights folder: NAME/ID of its run, with a number where it comes again."""
    names: list[str] = []
    for folder in folders:
        path = Path(folder).resolve()
        name = "/".join(path.parts[-3:-1]) if path.name == "weights" else path.name
        taken = sum(each == name or each.startswith(f"{name} (") for each in names)
        names.append(f"{name} ({taken + 1})" if taken else name)
    return names
