"""The columns of a table of runs: which figure of `metrics.json` each shows, and how it is printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from visllama.config.objective import VAL_LOSS
from visllama.console import printable
from visllama.errors import ConfigError
from visllama.evaluation.metrics_file import is_number, mapping, numbers
from visllama.report.judged_run import JudgedRun

_USUAL = {"caption": ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr"), "vqa": ("accuracy",)}
_CAPTION_SCALE = 100


class Column(NamedTuple):
    """A figure of a run.

    Attributes:
        evaluation: The evaluation that it is of; None of `val/loss`.
        metric: Its name there.
        scale: How many times larger it is printed than files hold it.
        is_higher_better: Whether the best run has the highest.
    """

    evaluation: str | None
    metric: str
    scale: int = 1
    is_higher_better: bool = True

    @property
    def name(self) -> str:
        """The whole name, which no other column has."""
        return self.metric if self.evaluation is None else f"{self.evaluation}/{self.metric}"

    def value_of(self, run: JudgedRun) -> float | None:
        """Return the figure of a run on the scale of `metrics.json`; None where it was not measured."""
        metrics = run.train if self.evaluation is None else mapping(run.evaluations, self.evaluation, "metrics")
        value = metrics.get(self.metric)
        return float(value) if is_number(value) else None

    def show(self, value: float) -> str:
        """Return a value as it is printed."""
        digits = 1 if self.is_higher_better else 3
        return f"{self.scale * value:.{digits}f}"


def find_columns(
    runs: Sequence[JudgedRun], wanted: Sequence[str] | None, evaluations: Sequence[str] | None
) -> list[Column]:
    """Return the columns of a table.

    Args:
        runs: The runs.
        wanted: Metrics, as `CIDEr`, `scenes_caption/CIDEr` or `val/loss`; None are the usual ones of each evaluation.
        evaluations: The evaluations that are looked at; None are all that a run has.

    Raises:
        ConfigError: If no run has such an evaluation or figure, or a metric is of several evaluations.
    """
    possible = _possible(runs, evaluations)
    if wanted is not None:
        return [_find(name, possible, runs) for name in wanted]
    chosen = []
    for column in possible:
        task = _task(runs, column)
        if column.evaluation is not None and column.metric in _USUAL.get(task, (column.metric,)):
            chosen.append(column)
    chosen = chosen or possible
    if not chosen:
        raise ConfigError("runs: none has a figure to show: judge them by visllama evaluate")
    return chosen


def _possible(runs: Sequence[JudgedRun], evaluations: Sequence[str] | None) -> list[Column]:
    names = list(dict.fromkeys(name for run in runs for name in run.evaluations))
    for name in evaluations or ():
        if name not in names:
            there = ", ".join(names) or "no evaluation"
            raise ConfigError(f"evaluations={printable(name)}: no run has it: there is {there}")
    columns: dict[str, Column] = {}
    for name in names if evaluations is None else evaluations:
        for run in runs:
            evaluation = run.evaluations.get(name, {})
            scale = _CAPTION_SCALE if evaluation.get("task") == "caption" else 1
            for metric in numbers(mapping(evaluation, "metrics")):
                column = Column(name, metric, scale)
                columns.setdefault(column.name, column)
    if any(is_number(run.train.get(VAL_LOSS)) for run in runs):
        columns.setdefault(VAL_LOSS, Column(None, VAL_LOSS, is_higher_better=False))
    return list(columns.values())


def _task(runs: Sequence[JudgedRun], column: Column) -> str:
    tasks = [run.evaluations[column.evaluation].get("task") for run in runs if column.evaluation in run.evaluations]
    return str(next(iter(tasks), ""))


def _find(name: str, possible: Sequence[Column], runs: Sequence[JudgedRun]) -> Column:
    """Return the column of a name; of several evaluations that have it, the one that all runs were judged on.

    Of a sweep all jobs were judged on validation, and the best alone on test.
    """
    matching = [column for column in possible if name in (column.name, column.metric)]
    exact = [column for column in matching if column.name == name]
    shared = [column for column in matching if all(column.value_of(run) is not None for run in runs)]
    for found in (exact, matching, shared):
        if len(found) == 1:
            return found[0]
    if matching:
        choices = ", ".join(column.name for column in matching)
        raise ConfigError(f"columns={printable(name)}: several evaluations have it: choose of {choices}")
    there = ", ".join(dict.fromkeys(printable(column.name) for column in possible)) or "nothing"
    raise ConfigError(f"columns={printable(name)}: no run has this figure: there is {there}")


def headers(columns: Sequence[Column]) -> list[str]:
    """Return the headers: the metrics alone where all are of one evaluation, or no other has the same metric."""
    metrics = [column.metric for column in columns]
    is_of_one = len({column.evaluation for column in columns if column.evaluation is not None}) <= 1
    return [column.metric if is_of_one and metrics.count(column.metric) == 1 else column.name for column in columns]
