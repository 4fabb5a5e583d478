"""Write what a run logs as files of TensorBoard."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from visllama.tracking.tracker import Picture, Tracker


class TensorBoardTracker(Tracker):
    """Tracker that writes a run's metrics, pictures and tables as TensorBoard's event files.

    A resumed run writes a second file beside the first one. The second file makes TensorBoard drop the metrics and
    pictures that the first file holds of the checkpoint's step and later ones; texts of these steps stay.

    Args:
        save_dir: The folder of the files. TensorBoard names a run by its path below `--logdir`, so that it shows the
            jobs of a sweep as one group if `--logdir` is the sweep's folder.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self._folder = save_dir
        self._inner = self._make(purge_step=None)

        # What a resumed run changes (`go_on`).
        self._first_step = 0
        self._steps_with_texts: set[int] = set()

    def _make(self, purge_step: int | None) -> TensorBoardLogger:
        """Build a logger whose file hides what earlier ones hold of a step and later ones; None hides nothing."""
        return TensorBoardLogger(self._folder, name="", version="", default_hp_metric=False, purge_step=purge_step)

    @property
    def name(self) -> str:
        """Lightning's name of the logger, always "tensorboard"."""
        return "tensorboard"

    @property
    def version(self) -> str:
        """Lightning's version of the run, always empty: the files lie directly in `save_dir`."""
        return ""

    @property
    def experiment(self) -> Any:
        """The `SummaryWriter` of torch that writes the event file."""
        return self._inner.experiment

    def go_on(self, first_step: int, logged: Mapping[int, set[str]]) -> None:
        """Continue a stopped run in a second file of events.

        From `first_step` on, TensorBoard shows the numbers of the second file only, so all numbers are written again.
        Texts of the first file stay visible: a text that it already holds is not written a second time.

        Args:
            first_step: The step of the checkpoint that the run continues from.
            logged: For each step from `first_step` on, the names of the metrics that the first file already holds.
        """
        # `logged` stays unset: TensorBoard drops these figures, so that they have to be given again.
        self._inner = self._make(purge_step=first_step)
        self._first_step = first_step

        # Texts are not dropped.
        self._steps_with_texts = {step for step, names in logged.items() if "val/loss" in names}

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Write a run's configuration as a text, and keep it for the file `hparams.yaml`, which `save` writes.

        Nothing is done if that file is there already, unless a stopped run is continued.

        Args:
            params: The configuration, as plain values that YAML can hold.
        """
        # A run that is judged once more has its configuration there already.
        is_written = Path(self._folder, "hparams.yaml").is_file()
        if is_written and not self._first_step:
            return

        self._inner.log_hyperparams(dict(params))

        # Markdown shows indented lines as they stand.
        text = yaml.safe_dump(dict(params), sort_keys=False, allow_unicode=True)
        indented = "\n".join(f"    {line}" for line in text.splitlines())
        self.experiment.add_text("config", indented, self._first_step)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write metrics of an optimizer step, each under its name.

        Args:
            metrics: Numbers such as losses and learning rates, by name.
            step: The optimizer step; None writes the metrics without a step.
        """
        self._inner.log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """Write to the disk what waits to be written, and `hparams.yaml` if it is not there."""
        self._inner.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what waits to be written, and close the file, when Lightning ends a training.

        Args:
            status: Lightning's name of how it ended, such as "success".
        """
        self._inner.finalize(status)

    def log_pictures(self, name: str, pictures: Sequence[Picture], step: int) -> None:
        """Write pictures as images, and their texts as a table without pictures.

        Args:
            name: The name of the table; that of an image is `NAME/SOURCE/KEY`.
            pictures: The pictures. One without an image has its texts alone.
            step: The optimizer step that they belong to.
        """
        for picture in pictures:
            if picture.image is not None:
                # The same name at each step: TensorBoard shows the steps of one picture under one slider.
                tag = f"{name}/{picture.source}/{picture.key}"

                pixels = np.asarray(picture.image.convert("RGB"))
                self.experiment.add_image(tag, pixels, step, dataformats="HWC")

        # TensorBoard drops the pictures of the steps that a resumed run repeats, and keeps their texts.
        if step in self._steps_with_texts:
            return

        columns = ["source", "key", "prompt", "text", "reference"]
        rows = []
        for picture in pictures:
            rows.append([picture.source, picture.key, picture.prompt, picture.text, picture.reference])
        self.log_rows(name, columns, rows, step)

    def log_rows(self, name: str, columns: Sequence[str], rows: Sequence[Sequence], step: int) -> None:
        """Write a table of texts and numbers as a Markdown text.

        Args:
            name: The name of the text.
            columns: The names of the columns.
            rows: The rows, each with a value for each column; None is an empty cell.
            step: The optimizer step that the table belongs to.
        """
        # TensorBoard has no tables of texts; it shows Markdown.
        rule = ["---"] * len(columns)

        lines = []
        for row in [columns, rule, *rows]:
            cells = " | ".join(_cell(value) for value in row)
            lines.append(f"| {cells} |")

        table = "\n".join(lines)
        self.experiment.add_text(name, table, step)

    def log_page(self, name: str, path: Path, step: int) -> None:
        """Write a text that names the file of an HTML page, as TensorBoard shows no pages.

        Args:
            name: The name under which the text is shown.
            path: The page's file, whose path is written as it is.
            step: The optimizer step that the page belongs to.
        """
        self.experiment.add_text(name, f"TensorBoard shows no pages; this one is the file `{path}`", step)

    def log_weights(self, folder: Path) -> None:
        """Do nothing: TensorBoard has no place for files."""

    def close(self, exit_code: int) -> None:
        """Write what waits to be written, and close the file; the exit code is not shown."""
        self._inner.finalize("success" if exit_code == 0 else "failed")


def _cell(value: object) -> str:
    """Return a value as the cell of a Markdown table, in one line, with the signs of Markdown and HTML escaped."""
    if value is None:
        text = ""
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = str(value)

    line = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", line)
