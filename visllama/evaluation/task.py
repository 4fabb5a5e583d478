"""What a task is given when it judges: one evaluation of the configuration, its records, and where its results go."""

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
        config: Its configuration, as plain values.
        source: Its records.
        prompts: What is put before the model: the records, or the `num_images` that it is cut down to.
        folder: The folder that its results are written to.
        plugins: The user's packages.
        made_by: What decides the texts, part by part: weights, precision, prompt, decoding, records.
        refuses_others: Whether predictions in the folder that something else has made are refused, not overwritten.
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
        """Refuse what an earlier judgement has left here, if something else made it; nothing is loaded or written.

        Raises:
            ConfigError: Naming what differs.
        """
        if self.refuses_others:
            for control in (None, *self.config["controls"]):
                refuse_other_key(self._log_path(control), self._made_by(control))

    def log(self, ids: Sequence[Mapping], key: str, control: str | None = None) -> PredictionLog:
        """Return the log of what is written, for the evaluation itself or for one of its controls.

        Args:
            ids: What a line says of its prompt beside the text.
            key: The key of the text.
            control: The name of the control; None is the evaluation itself.
        """
        return PredictionLog(self._log_path(control), ids, key, self._made_by(control), self.refuses_others)

    def _log_path(self, control: str | None) -> Path:
        return self.folder / ("predictions.jsonl" if control is None else f"controls/{control}.jsonl")

    def _made_by(self, control: str | None) -> dict[str, object]:
        return {**self.made_by, "control": control}
