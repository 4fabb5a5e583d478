"""Hold the models that the demo serves, each to one client at a time, while a limited number of others wait."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from visllama.errors import ConfigError
from visllama.inference.pipeline import Pipeline

MOST_BEAMS = 8
"""The largest number of beams that a client may ask for: a request holds the model while it runs."""
MOST_NEW_TOKENS = 512
"""The largest number of new tokens that a client may ask for."""
MOST_TEMPERATURE = 5.0
"""The highest temperature that a client may ask for."""
MOST_PICTURES = 8
"""The largest number of pictures in a request; each may fill 150 MB when it is decoded."""


class Busy(ConfigError):
    """Raised when the largest allowed number of clients already waits for a model."""


class Served:
    """A model that several clients share, one at a time.

    Args:
        name: The name by which a client chooses the model.
        pipeline: The model with its methods that write captions and answers.
        decoding: Arguments of transformers' `generate` that hold unless a client asks for others.
        max_waiting: The largest number of clients that may wait for the model.
    """

    def __init__(self, name: str, pipeline: Pipeline, decoding: Mapping[str, Any], max_waiting: int) -> None:
        self.name = name
        self.pipeline = pipeline
        self.decoding = dict(decoding)
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._count = threading.Lock()
        """Held while the waiting clients are counted."""
        self._turn = threading.Lock()
        """Held by the client that uses the model."""

    @contextmanager
    def turn(self) -> Generator[Pipeline, None, None]:
        """Use as `with served.turn() as pipeline:` to wait for the model and then have it alone inside the block.

        Yields:
            The pipeline of the model.

        Raises:
            Busy: If too many clients wait already.
        """
        with self._count:
            if self._num_waiting >= self._max_waiting:
                raise Busy(f"{self._num_waiting} requests wait already: try again in a while")
            self._num_waiting += 1

        # Counted as waiting only until it has the model, or is interrupted.
        try:
            self._turn.acquire()
        finally:
            with self._count:
                self._num_waiting -= 1

        # A plain lock, which another thread may release: gradio may begin a stream in one thread and end it in another.
        try:
            yield self.pipeline
        finally:
            self._turn.release()

    def settings(
        self, num_beams: object = None, temperature: object = None, max_new_tokens: object = None
    ) -> dict[str, Any]:
        """Return the arguments of transformers' `generate` for the values that a client asks for.

        A value that is None stays as the server has it. With a number of beams and no temperature, texts are searched
        and not sampled; with a temperature they are sampled.

        Args:
            num_beams: The number of beams, a whole number from 1 (greedy search) to `MOST_BEAMS`.
            temperature: The temperature for sampling, above 0 and at most `MOST_TEMPERATURE`.
            max_new_tokens: The largest number of new tokens, a whole number from 1 to `MOST_NEW_TOKENS`.

        Raises:
            ConfigError: If a value has another type, or is out of its range; the message names the argument.
        """
        settings = dict(self.decoding)

        # Beams are searched, and not sampled, unless a temperature is asked for too.
        if num_beams is not None:
            settings["num_beams"] = _check_whole("num_beams", num_beams, MOST_BEAMS)
            settings["do_sample"] = False
        if temperature is not None:
            settings["temperature"] = _check_temperature(temperature)
            settings["do_sample"] = True
        if max_new_tokens is not None:
            settings["max_new_tokens"] = _check_whole("max_new_tokens", max_new_tokens, MOST_NEW_TOKENS)

        return settings


def _check_temperature(value: object) -> float:
    """Return a temperature that a client sent, as a float.

    Raises:
        ConfigError: If it is no number, or out of its range.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value <= MOST_TEMPERATURE:
        raise ConfigError(f"temperature: has to be a number above 0, and at most {MOST_TEMPERATURE:g}")
    return float(value)


def _check_whole(key: str, value: object, most: int) -> int:
    """Return a whole number that a client sent, as an int; a float such as 5.0 is taken too, as sliders may send it.

    Args:
        key: The name of the value in the error message.
        value: The value, of any type.
        most: The largest value; the smallest is 1.

    Raises:
        ConfigError: If the value is no whole number, or out of its range.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # The range first: a huge whole number fits no float.
    if not is_number or not 1 <= value <= most or not float(value).is_integer():
        raise ConfigError(f"{key}: has to be a whole number from 1 to {most}")
    return int(value)


class Shelf:
    """The models that are served, found by their names; iterating yields them in their order.

    Args:
        models: At least one model, each with another name; the first one is the default.
    """

    def __init__(self, models: Sequence[Served]) -> None:
        self._models = {model.name: model for model in models}

    @property
    def names(self) -> list[str]:
        """Return the names of the models, the default one first."""
        return list(self._models)

    def __iter__(self) -> Iterator[Served]:
        return iter(self._models.values())

    def choose(self, name: object = None) -> Served:
        """Return the model that has a name, or the first model if the name is None.

        Args:
            name: The name, which comes from a client and may have any type.

        Raises:
            ConfigError: If no model has this name; the message lists the names.
        """
        if name is None:
            return next(iter(self))
        if not isinstance(name, str) or name not in self._models:
            raise ConfigError(f"weights: has to be one of {', '.join(self.names)}")
        return self._models[name]


def names_of(folders: Sequence[str | Path]) -> list[str]:
    """Return different names for weights folders, one for each folder in their order.

    A folder called `weights` gets the last two parts of its run's path (NAME/ID), any other its own name. A name that
    is repeated gets a number: `NAME/ID (2)`.

    Args:
        folders: The weights folders, which are not read.
    """
    names: list[str] = []
    for folder in folders:
        path = Path(folder).resolve()
        name = path.name

        # All runs call the folder so.
        if name == "weights":
            name = "/".join(path.parts[-3:-1])

        earlier = [other for other in names if other == name or other.startswith(f"{name} (")]
        if earlier:
            name += f" ({len(earlier) + 1})"
        names.append(name)
    return names
