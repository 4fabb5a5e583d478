"""Choose the columns of a table of runs, each of which shows one figure of `metrics.json`, and print their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from visllama.config.objective import VAL_LOSS
from visllama.console import printable
from visllama.errors import ConfigError
from visllama.evaluation.metrics_file import is_number, mapping, numbers
from visllama.report.judged_run import JudgedRun

_USUAL = {"caption": ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr"), "vqa": ("accuracy",)}
"""The metrics of each task that a table shows where no columns are named."""
_CAPTION_SCALE = 100


class Column(NamedTuple):
    """A figure (a metric of an evaluation, or `val/loss`) that a table shows for each run.

    Attributes:
        evaluation: The name of the evaluation that the figure belongs to; None for `val/loss`, which belongs to the
            training.
        metric: The figure's name, for example "CIDEr" or "val/loss".
        scale: The factor from the value in `metrics.json` to the value that is printed: 100 for metrics of captions.
        is_higher_better: Whether the best run has the highest value; false for a loss.
    """

    evaluation: str | None
    metric: str
    scale: int = 1
    is_higher_better: bool = True

    @property
    def name(self) -> str:
        """The name that no other column has: "EVALUATION/METRIC", or the metric alone for `val/loss`."""
        if self.evaluation is None:
            return self.metric
        return f"{self.evaluation}/{self.metric}"

    def value_of(self, run: JudgedRun) -> float | None:
        """Return this figure of a run as it stands in `metrics.json`; None where it is not there or is no number."""
        metrics = run.train
        if self.evaluation is not None:
            metrics = mapping(run.evaluations, self.evaluation, "metrics")

        # The file may be somebody else's: it can hold a text where a number belongs.
        value = metrics.get(self.metric)
        if value is None or not is_number(value):
            return None
        return float(value)

    def show(self, value: float) -> str:
        """Return a value as it is printed: times `scale`, a metric with one decimal, a loss with three.

        Args:
            value: The value, as `value_of` returns it.
        """
        # A loss of about 2 needs more digits than a metric of about 100.
        digits = 1 if self.is_higher_better else 3
        return f"{self.scale * value:.{digits}f}"


def find_columns(
    runs: Sequence[JudgedRun],
    wanted: Sequence[str] | None,
    evaluations: Sequence[str] | None,
) -> list[Column]:
    """Choose the columns of a table of runs.

    Args:
        runs: The runs.
        wanted: The names of figures, in the order of the columns: `CIDEr`, `scenes_caption/CIDEr` or `val/loss`. None
            chooses the usual metrics of each evaluation (BLEU-4, METEOR, ROUGE-L and CIDEr of captions, the accuracy of
            answers, all of any other task), and `val/loss` only if there is no such metric.
        evaluations: The names of the evaluations whose figures may be shown; None means all evaluations of all runs.

    Raises:
        ConfigError: If no run has a figure to show, or no run has an evaluation or a figure that was named; or if a
            metric was named without its evaluation, several evaluations have it, and not exactly one of them is in all
            runs.
    """
    possible = _possible_columns(runs, evaluations)
    if wanted is not None:
        return [_find_column(name, possible, runs) for name in wanted]

    # `val/loss` stands in a table where it is named, or where there is nothing else.
    chosen_columns = []
    for column in possible:
        if column.evaluation is None:
            continue
        # A task that we do not know shows all its metrics.
        task = _task_of(runs, column.evaluation)
        if task not in _USUAL or column.metric in _USUAL[task]:
            chosen_columns.append(column)

    chosen_columns = chosen_columns or possible
    if not chosen_columns:
        raise ConfigError("runs: none has a figure to show: judge them by visllama evaluate")
    return chosen_columns


def _possible_columns(runs: Sequence[JudgedRun], evaluations: Sequence[str] | None) -> list[Column]:
    """Return a column for each figure that a run has, `val/loss` last.

    Raises:
        ConfigError: If no run has one of `evaluations`.
    """
    all_names = (name for run in runs for name in run.evaluations)
    known_names = list(dict.fromkeys(all_names))
    if evaluations is None:
        evaluations = known_names
    for name in evaluations:
        if name not in known_names:
            unknown_name = printable(name)
            there = ", ".join(known_names) or "no evaluation"
            raise ConfigError(f"evaluations={unknown_name}: no run has it: there is {there}")

    columns: dict[str, Column] = {}
    for name in evaluations:
        for run in runs:
            evaluation = run.evaluations.get(name, {})
            # Papers print metrics of captions x100.
            scale = _CAPTION_SCALE if evaluation.get("task") == "caption" else 1
            metrics = mapping(evaluation, "metrics")
            for metric in numbers(metrics):
                column = Column(name, metric, scale)
                columns.setdefault(column.name, column)

    if any(is_number(run.train.get(VAL_LOSS)) for run in runs):
        val_loss = Column(None, VAL_LOSS, is_higher_better=False)
        columns.setdefault(VAL_LOSS, val_loss)
    return list(columns.values())


def _task_of(runs: Sequence[JudgedRun], evaluation: str) -> str:
    """Return the task of an evaluation by the first run that has it."""
    for run in runs:
        if evaluation in run.evaluations:
            return str(run.evaluations[evaluation].get("task"))
    return ""


def _find_column(name: str, possible: Sequence[Column], runs: Sequence[JudgedRun]) -> Column:
    """Return the column of a name.

    Where several evaluations have the metric, the one that all runs were judged on is returned: in a sweep, all jobs
    are judged on validation and only the best one on test.

    Raises:
        ConfigError: If no column has this name, or several have it.
    """
    matching = [column for column in possible if name in (column.name, column.metric)]
    exact = [column for column in matching if column.name == name]
    shared = []
    for column in matching:
        values = [column.value_of(run) for run in runs]
        if None not in values:
            shared.append(column)

    for candidates in (exact, matching, shared):
        if len(candidates) == 1:
            return candidates[0]

    wanted_name = printable(name)
    if matching:
        choices = ", ".join(column.name for column in matching)
        raise ConfigError(f"columns={wanted_name}: several evaluations have it: choose of {choices}")
    known_names = dict.fromkeys(printable(column.name) for column in possible)
    there = ", ".join(known_names) or "nothing"
    raise ConfigError(f"columns={wanted_name}: no run has this figure: there is {there}")


def headers(columns: Sequence[Column]) -> list[str]:
    """Return the header of each column: its metric alone where the metric is clear, otherwise "EVALUATION/METRIC".

    A metric is clear if all columns are of one evaluation, and no other column has the same metric.
    """
    metrics = [column.metric for column in columns]
    evaluations = {column.evaluation for column in columns if column.evaluation is not None}

    texts = []
    for column in columns:
        is_clear = len(evaluations) <= 1 and metrics.count(column.metric) == 1
        texts.append(column.metric if is_clear else column.name)
    return texts
