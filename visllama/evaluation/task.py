"""All that judging one evaluation needs: its configuration, its prompts, and the folder of its results."""

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
    """One evaluation that `judge_captions` or `judge_answers` is to run.

    Attributes:
        name: The name of the evaluation, for example `coco_karpathy`.
        config: The configuration of the evaluation, `evaluation.NAME`, as plain values.
        source: The source of the records.
        prompts: The prompts that the model continues: one for each picture that is captioned, or for each question.
        folder: The folder that the results are written to.
        plugins: The names of the user's importable packages, in which the source of the training records may be
            defined; the control `majority_answer` reads these records.
        made_by: Everything that decides the generated texts, by name: weights, precision, prompt, decoding, records.
        refuses_others: Whether predictions in `folder` that were made by anything else than `made_by` are refused;
            otherwise they are overwritten.
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
        """Check that no predictions in the folder were made by anything else than `made_by`.

        The predictions of the controls (the same prompts with wrong pictures or none) are checked too. Nothing is
        written. If `refuses_others` is false, nothing is
        checked, because such predictions will be overwritten.

        Raises:
            ConfigError: If there are such predictions. The message names what differs, for example the decoding.
        """
        if not self.refuses_others:
            return

        for control in (None, *self.config["controls"]):
            path = self._log_path(control)
            refuse_other_key(path, self._made_by(control))

    def log(self, ids: Sequence[Mapping], key: str, control: str | None = None) -> PredictionLog:
        """Return the log that the generated texts are written to; the file is not opened yet.

        Args:
            ids: The id of each prompt, as `{"image_id": 7}`, in the order of the prompts.
            key: The key under which a line of the log holds the text: `caption` or `answer`.
            control: The name of a control (the same prompts with wrong pictures or none), whose texts are logged in
                `controls/CONTROL.jsonl`. None means the texts of the evaluation itself, in `predictions.jsonl`.
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
