"""The base class of trackers: loggers that also take pictures, tables, pages and weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.loggers import Logger
from PIL import Image

PICTURE_COLUMNS = ("source", "key", "picture", "prompt", "text", "reference")
"""The columns of a table of pictures."""


class Picture(NamedTuple):
    """A validation record with what the model writes about it.

    Attributes:
        source: The name of the record's data source.
        key: The record's key in its source.
        image: The record's first picture; None where it has none.
        prompt: The question that the model was asked; empty where it writes a caption.
        text: The text that the model wrote.
        reference: The text that the record holds.
    """

    source: str
    key: str
    image: Image.Image | None
    prompt: str
    text: str
    reference: str


class Tracker(Logger):
    """A logger that also shows pictures with captions, the final scores, pages, and the weights.

    All methods are called on the first rank alone.

    Attributes:
        logged: Names of the figures that this tracker was given before its run was stopped, by their step.
    """

    logged: Mapping[int, set[str]] = {}

    def go_on(self, first_step: int, logged: Mapping[int, set[str]]) -> None:
        """Continue the run that the tracker holds.

        Args:
            first_step: The step of the checkpoint that the run goes on from.
            logged: Names of the figures of that step and later ones that the tracker was given before, by their step.
        """
        self.logged = logged

    def without_logged(self, metrics: Mapping[str, float], step: int | None) -> dict[str, float]:
        """Return the figures of a step that the tracker was not given before its run was stopped."""
        known = set() if step is None else self.logged.get(step, set())
        return {name: value for name, value in metrics.items() if name not in known}

    @abstractmethod
    def log_pictures(self, name: str, pictures: Sequence[Picture], step: int) -> None:
        """Show pictures with captions as a table of `PICTURE_COLUMNS`.

        Args:
            name: The table's name.
            pictures: The pictures, one a row.
            step: The optimizer step that they belong to.
        """

    @abstractmethod
    def log_rows(self, name: str, columns: Sequence[str], rows: Sequence[Sequence], step: int) -> None:
        """Show a table of texts and numbers.

        Args:
            name: The table's name.
            columns: The names of its columns.
            rows: The rows, each with a value for each column.
            step: The optimizer step that they belong to.
        """

    @abstractmethod
    def log_page(self, name: str, path: Path, step: int) -> None:
        """Show an HTML page of the run's folder, or its path where the tracker shows no pages."""

    @abstractmethod
    def log_weights(self, folder: Path) -> None:
        """Keep the trained weights, where the tracker was configured to.

        Args:
            folder: The run's `weights/`.
        """

    @abstractmethod
    def close(self, exit_code: int) -> None:
        """End the tracker's run; calling it again changes nothing.

        Args:
            exit_code: The code that the tracker shows for the run; 0 where it has ended well.
        """
