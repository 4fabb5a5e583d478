"""One evaluation as a task judges it: its configuration, its records, and the folder of its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visllama.data.source import Source
from visllama.evaluation.prediction_log import PredictionLog, refuse_other_key
from visllama.evaluation.prompts import Prompts


@dataclass(frozen=True)
class Task:
    """One evaluation, as it is judged.

    Attributes:
        name: The name of the evaluation.
        config: The configuration of the evaluation, as plain values.
        source: The source of the records.
        prompts: The prompts that are put before the model: one of each record, or of `num_images` records.
        folder: The folder that the results are written to.
        plugins: The user's packages.
        made_by: Everything that decides the texts, part by part: weights, precision, prompt, decoding, records.
        refuses_others: Whether predictions in the folder that something else has made are refused; otherwise they are
            overwritten.
    """

    name: str
    config: Mapping[str, Any]
    source: Source
    prompts: Prompts
    folder: Path
    plugins: Sequence[str]
    made_by: Mapping[str, object]
    refuses_others: bool

    def check_logs(self) -> None:
        """Refuse logs in the folder that something else has made; nothing is loaded or written.

        Raises:
            ConfigError: If there is such a log, naming what differs.
        """
        if not self.refuses_others:
            return

        for control in (None, *self.config["controls"]):
            path = self._log_path(control)
            refuse_other_key(path, self._made_by(control))

    def log(self, ids: Sequence[Mapping], key: str, control: str | None = None) -> PredictionLog:
        """Return the log of the texts of the evaluation itself, or of one of its controls.

        Args:
            ids: The id of each prompt, as `{"image_id": 7}`.
            key: The key under which a line of the log holds the text.
            control: The name of the control; None means the evaluation itself.
        """
        return PredictionLog(
            path=self._log_path(control),
            ids=ids,
            name=key,
            made_by=self._made_by(control),
            refuses_others=self.refuses_others,
        )

    def _log_path(self, control: str | None) -> Path:
        if control is None:
            return self.folder / "predictions.jsonl"
        return self.folder / "controls" / f"{control}.jsonl"

    def _made_by(self, control: str | None) -> dict[str, object]:
        # The pictures of a control differ, and with them its texts.
        return {**self.made_by, "control": control}
