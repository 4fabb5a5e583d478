"""Build a table of runs: a row for each setting, with the mean and the standard deviation of each figure over its runs.

Rows of published figures may follow. The best mean of each column is marked, and notes explain how the figures were
made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from visllama.console import printable
from visllama.errors import ConfigError
from visllama.evaluation.metrics_file import is_number
from visllama.report.columns import Column, headers
from visllama.report.conditions import NUM_RECORDS, Conditions, Differences, check_alike, conditions, shared_text
from visllama.report.judged_run import JudgedRun
from visllama.report.published import Published, check_comparable
from visllama.report.settings import Setting, group, labels

DAGGER = "†"
"""The mark of rows that hold published figures."""
_NOTED_CONDITIONS = {"split": "split {}", "decoding": "decoding: {}", "tokenizer": "tokenizer {}"}
"""The conditions that the notes name where all runs share them, with their words."""


class Cell(NamedTuple):
    """The values of one figure in the runs of a row, on the scale of `metrics.json`.

    Attributes:
        values: The value of each run that has the figure; empty where no run has it. Of a published row, its one value.
        is_best: Whether no row has a better mean in this column; false where only one row has the figure.
    """

    values: list[float]
    is_best: bool = False

    @property
    def mean(self) -> float | None:
        """The mean of the values; None where there is none."""
        return mean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """The standard deviation of the values (of a sample: n - 1); None for fewer than two values."""
        return stdev(self.values) if len(self.values) > 1 else None


class TableRow(NamedTuple):
    """A row of the table: the runs of one setting, or a published system.

    Attributes:
        labels: The values in which rows differ, one for each header in `RunTable.labels`; for a published system its
            name, then empty texts.
        runs: The names of the runs that the row is averaged over; empty for a published system.
        cells: The figures, in the order of the columns.
        is_published: Whether the row is of a published system.
    """

    labels: list[str]
    runs: list[str]
    cells: list[Cell]
    is_published: bool = False


class RunTable(NamedTuple):
    """A table of runs, from which each format is written.

    Attributes:
        labels: The headers of the first columns, which hold the labels of the rows.
        headers: The headers of the columns of figures, in the order of `columns`.
        columns: The columns of figures.
        rows: The rows: those of runs sorted by their labels, then those of published systems.
        notes: Sentences about how the figures were made, one a line.
        mixed: The conditions under which runs were judged differently: the value as text, by the names of evaluation,
            condition and run.
    """

    labels: list[str]
    headers: list[str]
    columns: list[Column]
    rows: list[TableRow]
    notes: list[str]
    mixed: dict[str, Differences]


def build_table(
    runs: Sequence[JudgedRun],
    rows: Sequence[str],
    over: Sequence[str],
    columns: Sequence[Column],
    published: Sequence[Published],
    mixed: bool,
) -> RunTable:
    """Check that runs and published systems may stand in one table, and build that table.

    Args:
        runs: The runs.
        rows: The keys of the configuration that tell rows apart: runs with the same values share a row.
        over: The keys over whose values a row is averaged, for example "seed".
        columns: The figures that are shown, as `find_columns` returns them.
        published: Published systems, each of which becomes a row at the end.
        mixed: Whether runs may have been judged under different conditions, and a row may be a mean of runs that differ
            in further keys, or of the same run twice. Each condition that differs then becomes a column before
            the figures. A published figure then stands in each column of its metric.

    Raises:
        ConfigError: If `mixed` is false, and conditions differ between runs or from those of a published system, or the
            runs of a row differ in a key that is in neither `rows` nor `over`, or have the same values at `over`, or
            several columns show the metric of a published figure.
    """
    names = (column.evaluation for column in columns if column.evaluation is not None)
    evaluations = list(dict.fromkeys(names))

    judged: dict[str, dict[str, dict[str, object]]] = {}
    differing: dict[str, Differences] = {}
    for name in evaluations:
        conditions_of_runs = _conditions_of(runs, name)
        judged[name] = conditions_of_runs
        different_conditions = check_alike(name, conditions_of_runs, mixed)
        if different_conditions:
            differing[name] = different_conditions

    # The runs were judged alike, or all is mixed: the first run stands for all.
    for name, by_run in judged.items():
        conditions_of_first = next(iter(by_run.values()))
        check_comparable(published, {name: conditions_of_first}, mixed)
    if not mixed:
        _check_one_column(published, columns)

    # A row is a setting: the runs that differ in nothing but what they are averaged over.
    settings = group(runs, rows, over, mixed)
    headers_of_rows = labels(rows) or ["runs"]
    table_rows = [_row_of_setting(setting, columns) for setting in settings]

    # Runs that were judged differently stand beside each other only with the difference in sight.
    is_one_evaluation = len(evaluations) == 1
    for name, values_by_condition in differing.items():
        for condition, values in values_by_condition.items():
            header = condition if is_one_evaluation else f"{name} {condition}"
            headers_of_rows.append(header)
            for row in table_rows:
                label = _values_of_row(row, values)
                row.labels.append(label)

    # After the columns of conditions have been added, so that published rows have as many labels as the others.
    for system in published:
        table_rows.append(_published_row(system, columns, len(headers_of_rows)))

    notes = list(_notes(runs, judged, over, settings))
    notes += _notes_on_published(published)
    return RunTable(
        labels=headers_of_rows,
        headers=headers(columns),
        columns=list(columns),
        rows=_with_best(table_rows, columns),
        notes=notes,
        mixed=differing,
    )


def _check_one_column(published: Sequence[Published], columns: Sequence[Column]) -> None:
    """Check that no published figure would stand in the columns of several evaluations, of which it names none.

    Raises:
        ConfigError: If one would; the message names the row and the columns.
    """
    for system in published:
        for metric in system.metrics:
            names = [column.name for column in columns if column.metric == metric]
            if len(names) <= 1:
                continue

            row_name = printable(system.name)
            metric_name = printable(metric)
            listed_names = printable(", ".join(names))
            raise ConfigError(
                f"published: {row_name} has {metric_name}, which several columns show ({listed_names}): choose one by "
                f"columns= or evaluations=, or put it into all of them by mixed=true"
            )


def _conditions_of(runs: Sequence[JudgedRun], evaluation: str) -> dict[str, dict[str, object]]:
    """Return the conditions of each run that has an evaluation, and the number of its records."""
    by_run = {}
    for run in runs:
        if evaluation in run.evaluations:
            content = run.evaluations[evaluation]
            of_run = conditions(content)
            of_run[NUM_RECORDS] = content.get("n")
            by_run[run.name] = of_run
    return by_run


def _values_of_row(row: TableRow, values: Mapping[str, str]) -> str:
    """Return the different values that the runs of a row have; "-" where none has one."""
    values_of_runs = [values[run] for run in row.runs if run in values]
    different_values = dict.fromkeys(values_of_runs)
    return " / ".join(different_values) or "-"


def _row_of_setting(setting: Setting, columns: Sequence[Column]) -> TableRow:
    """Return the row of the runs of one setting."""
    return TableRow(
        labels=list(setting.values) or ["all"],
        runs=[run.name for run in setting.runs],
        cells=_cells(setting, columns),
    )


def _published_row(system: Published, columns: Sequence[Column], num_labels: int) -> TableRow:
    """Return the row of a published system."""
    cells = []
    # By the metric alone: a published figure names no evaluation of ours.
    for column in columns:
        values = []
        if column.metric in system.metrics:
            values.append(system.metrics[column.metric])
        cells.append(Cell(values))

    empty_labels = [""] * (num_labels - 1)
    return TableRow(labels=[system.name, *empty_labels], runs=[], cells=cells, is_published=True)


def _cells(setting: Setting, columns: Sequence[Column]) -> list[Cell]:
    cells = []
    # Not each run has each figure: a mean is over those that have it, and the table says over how many.
    for column in columns:
        values = [column.value_of(run) for run in setting.runs]
        measured_values = [value for value in values if value is not None]
        cells.append(Cell(measured_values))
    return cells


def _with_best(rows: Sequence[TableRow], columns: Sequence[Column]) -> list[TableRow]:
    """Mark the best cell of each column, where there is more than one to choose from."""
    best: list[float | None] = []
    for place, column in enumerate(columns):
        means = [row.cells[place].mean for row in rows]
        measured_means = [value for value in means if value is not None]
        # The best of one row alone would say nothing.
        if len(measured_means) <= 1:
            best.append(None)
            continue

        choose = max if column.is_higher_better else min
        best.append(choose(measured_means))

    marked_rows = []
    for row in rows:
        cells = []
        for cell, best_mean in zip(row.cells, best, strict=True):
            is_best = best_mean is not None and cell.mean == best_mean
            cells.append(cell._replace(is_best=is_best))
        marked_rows.append(row._replace(cells=cells))
    return marked_rows


def _notes(
    runs: Sequence[JudgedRun],
    judged: Mapping[str, Mapping[str, Conditions]],
    over: Sequence[str],
    settings: Sequence[Setting],
) -> Iterator[str]:
    """Yield sentences that explain how the figures were made."""
    for name, by_run in judged.items():
        conditions_of_runs = list(by_run.values())
        description = _describe(conditions_of_runs)
        yield f"{name}: {description}."

        tasks = [of_run.get("task") for of_run in conditions_of_runs]
        if "caption" in tasks:
            yield "Metrics of captions are x100."

    # More than one revision is shown, not refused: most changes of the code touch no score.
    revisions = dict.fromkeys(run.revision or "not known" for run in runs)
    listed_revisions = ", ".join(revisions)
    legend = " (+: with changes)" if "+" in listed_revisions else ""
    yield f"git {listed_revisions}{legend}."

    if any(len(setting.runs) > 1 for setting in settings):
        keys = ", ".join(over)
        yield f"Mean and standard deviation over {keys}; n is the number of runs."


def _describe(conditions_of_runs: Sequence[Conditions]) -> str:
    """Return the conditions that all runs of an evaluation share, and on how many records they were judged, as text."""
    parts = []
    # A condition that the runs do not share is a column of the table instead.
    for key, words in _NOTED_CONDITIONS.items():
        value = shared_text(key, conditions_of_runs)
        if value:
            parts.append(words.format(value))

    parts.append(_num_records(conditions_of_runs))
    return ", ".join(parts)


def _num_records(conditions_of_runs: Sequence[Conditions]) -> str:
    """Return on how many records the runs were judged, in words; all counts where they differ."""
    known_counts = set()
    for of_run in conditions_of_runs:
        count = of_run.get(NUM_RECORDS)
        if isinstance(count, int | float) and is_number(count):
            known_counts.add(count)
    if not known_counts:
        return "an unknown number of images"

    # More than one count is a warning to the reader: the scores are of different records.
    texts = [f"{count:,}" for count in sorted(known_counts)]
    numbers = " or ".join(texts)
    tasks = [of_run.get("task") for of_run in conditions_of_runs]
    noun = "answers" if "vqa" in tasks else "images"
    return f"{numbers} {noun}"


def _notes_on_published(published: Sequence[Published]) -> Iterator[str]:
    """Yield for each published row a sentence with its source, its tokenizer and its split."""
    for system in published:
        tokenizer = system.tokenizer or "not known"
        split = system.split or "not known"
        yield f"{DAGGER} {system.name}: as published in {system.source} (tokenizer {tokenizer}, split {split})."


def as_json(table: RunTable) -> dict[str, Any]:
    """Return a table as plain values that JSON can hold, for `report.json`.

    Figures have the scale of `metrics.json`: they are not multiplied by 100 as in the printed table.

    Returns:
        Under "rows" a list with the settings, the runs and the figures of each row, by column; under "notes" the notes
        of the table; and under "mixed" the content of `table.mixed`, only if it is not empty.
    """
    rows: list[dict[str, Any]] = []
    for row in table.rows:
        figures = {}
        for column, cell in zip(table.columns, row.cells, strict=True):
            if cell.values:
                figures[column.name] = _cell_as_json(cell)

        if row.is_published:
            rows.append({"published": row.labels[0], "figures": figures})
        else:
            setting = dict(zip(table.labels, row.labels, strict=True))
            rows.append({"setting": setting, "runs": row.runs, "figures": figures})

    content: dict[str, Any] = {"rows": rows, "notes": table.notes}
    if table.mixed:
        content["mixed"] = table.mixed
    return content


def _cell_as_json(cell: Cell) -> dict[str, object]:
    content: dict[str, object] = {
        "mean": cell.mean,
        "n": len(cell.values),
        "values": cell.values,
        "is_best": cell.is_best,
    }
    if cell.spread is not None:
        content["spread"] = cell.spread
    return content
