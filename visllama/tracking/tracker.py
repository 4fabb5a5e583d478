"""The base class of trackers: loggers that also take pictures, tables, pages and weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.loggers import Logger
from PIL import Image

PICTURE_COLUMNS = ("source", "key", "picture", "prompt", "text", "reference")
"""The columns of a table of pictures: the fields of `Picture`, with its `image` under "picture"."""


class Picture(NamedTuple):
    """A validation record with the text that the model wrote about it.

    Attributes:
        source: The name of the record's data source.
        key: The record's key, which names it within its source.
        image: The record's first picture; None if it has none.
        prompt: The question that the model was asked; empty if it was to write a caption.
        text: The text that the model wrote.
        reference: The caption or answer that the record holds.
    """

    source: str
    key: str
    image: Image.Image | None
    prompt: str
    text: str
    reference: str


class Tracker(Logger):
    """Base class of Lightning loggers that also show pictures with texts, tables and HTML pages, and keep weights.

    visllama calls the methods that are declared here on the first rank alone.

    Attributes:
        logged: The names of the metrics (logged numbers) that this tracker was given before its run was stopped, in a
            set for each step; empty for a new run.
    """

    logged: Mapping[int, set[str]] = {}

    def go_on(self, first_step: int, logged: Mapping[int, set[str]]) -> None:
        """Prepare the tracker to continue a stopped run; it is called before anything is logged.

        Args:
            first_step: The step of the checkpoint that the run resumes from.
            logged: For `first_step` and each later step, the names of the metrics that the tracker was already given.
        """
        self.logged = logged

    def without_logged(self, metrics: Mapping[str, float], step: int | None) -> dict[str, float]:
        """Return the metrics that the tracker was not already given for this step before its run was stopped.

        Args:
            metrics: The numbers to log, by name; the mapping is not changed.
            step: The optimizer step; with None, all metrics are returned.
        """
        known = set() if step is None else self.logged.get(step, set())
        return {name: value for name, value in metrics.items() if name not in known}

    @abstractmethod
    def log_pictures(self, name: str, pictures: Sequence[Picture], step: int) -> None:
        """Send pictures with their texts, which are shown as a table of `PICTURE_COLUMNS` where the tracker has tables.

        Args:
            name: The table's name.
            pictures: The pictures, one for each row.
            step: The optimizer step that they belong to.
        """

    @abstractmethod
    def log_rows(self, name: str, columns: Sequence[str], rows: Sequence[Sequence], step: int) -> None:
        """Send a table of texts and numbers.

        Args:
            name: The table's name.
            columns: The names of the columns.
            rows: The rows, each with a value for each column.
            step: The optimizer step that the table belongs to.
        """

    @abstractmethod
    def log_page(self, name: str, path: Path, step: int) -> None:
        """Send an HTML page, or its path alone if the tracker cannot show pages.

        Args:
            name: The name under which the page is shown.
            path: The page's file.
            step: The optimizer step that the page belongs to.
        """

    @abstractmethod
    def log_weights(self, folder: Path) -> None:
        """Keep a copy of the trained weights if the tracker was built to do so; else do nothing.

        Args:
            folder: The run's `weights/` folder.
        """

    @abstractmethod
    def close(self, exit_code: int) -> None:
        """End the tracker's run; a second call changes nothing.

        Args:
            exit_code: The exit code to show for the run, if the tracker shows one; 0 means that it has ended well.
        """
