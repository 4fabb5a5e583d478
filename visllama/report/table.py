"""A table of runs: a row a setting, mean and spread of each figure, the best marked, and what holds for all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import NamedTuple

from visllama.evaluation.metrics_file import is_number
from visllama.report.columns import Column, headers
from visllama.report.conditions import NUM_RECORDS, check_alike, conditions, shared_text
from visllama.report.judged_run import JudgedRun
from visllama.report.published import Published, check_comparable
from visllama.report.settings import Setting, group, labels

DAGGER = "†"


class Cell(NamedTuple):
    """A figure over the runs of a row, on the scale of `metrics.json`.

    Attributes:
        values: The figure of each run that measured it; none where no run did.
        is_best: Whether no row has a better mean.
    """

    values: list[float]
    is_best: bool = False

    @property
    def mean(self) -> float | None:
        """The mean; None where nothing was measured."""
        return mean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """The standard deviation over the runs; None of less than two."""
        return stdev(self.values) if len(self.values) > 1 else None


class TableRow(NamedTuple):
    """A setting, or a published system.

    Attributes:
        labels: The values that set it apart; of a published system its name, then nothing.
        runs: The names of its runs.
        cells: Its figures, in the order of the columns.
        is_published: Whether its figures are somebody else's.
    """

    labels: list[str]
    runs: list[str]
    cells: list[Cell]
    is_published: bool = False


class RunTable(NamedTuple):
    """A table as every format writes it.

    Attributes:
        labels: The headers of what sets rows apart.
        headers: The headers of the figures.
        columns: The figures.
        rows: The rows.
        notes: What has to be known of them, a sentence a line.
        mixed: The conditions that differ, by evaluation and run.
    """

    labels: list[str]
    headers: list[str]
    columns: list[Column]
    rows: list[TableRow]
    notes: list[str]
    mixed: dict[str, dict[str, dict[str, str]]]


def build_table(
    runs: Sequence[JudgedRun], rows: Sequence[str], over: Sequence[str], columns: Sequence[Column],
    published: Sequence[Published], mixed: bool,
) -> RunTable:  # fmt: skip
    """Return the table of these runs.

    Args:
        runs: The runs.
        rows: The keys that set rows apart.
        over: The keys over whose values a row is averaged.
        columns: The figures.
        published: The published figures.
        mixed: Whether runs that were judged otherwise stand beside each other; what differs then becomes columns.

    Raises:
        ConfigError: If they were, and that is not asked for, or a row would be a mean of different settings.
    """
    evaluations = list(dict.fromkeys(column.evaluation for column in columns if column.evaluation is not None))
    judged = {name: _conditions_of(runs, name) for name in evaluations}
    differing = {name: check_alike(name, judged[name], mixed) for name in evaluations}
    differing = {name: found for name, found in differing.items() if found}
    for name in evaluations:
        check_comparable(published, {name: next(iter(judged[name].values()))}, mixed)

    settings = group(runs, rows, over, mixed)
    headers_of_rows = labels(rows)
    table_rows = [
        TableRow(list(setting.values), [run.name for run in setting.runs], _cells(setting, columns))
        for setting in settings
    ]
    if not rows:
        headers_of_rows = ["runs"]
        table_rows = [row._replace(labels=["all"]) for row in table_rows]
    for name, found in differing.items():
        for condition, values in found.items():
            headers_of_rows.append(condition if len(evaluations) == 1 else f"{name} {condition}")
            for row in table_rows:
                row.labels.append(" / ".join(dict.fromkeys(values[run] for run in row.runs if run in values)) or "-")
    for one in published:
        filled = [one.name, *[""] * (len(headers_of_rows) - 1)]
        cells = [Cell([one.metrics[column.metric]] if column.metric in one.metrics else []) for column in columns]
        table_rows.append(TableRow(filled, [], cells, is_published=True))

    notes = [*_notes(runs, judged, over, settings), *_notes_on_published(published)]
    return RunTable(headers_of_rows, headers(columns), list(columns), _with_best(table_rows, columns), notes, differing)


def _conditions_of(runs: Sequence[JudgedRun], evaluation: str) -> dict[str, dict[str, object]]:
    """Return the conditions of each run that has an evaluation, and the number of its records."""
    found = {}
    for run in runs:
        if evaluation in run.evaluations:
            one = run.evaluations[evaluation]
            found[run.name] = {**conditions(one), NUM_RECORDS: one.get("n")}
    return found


def _cells(setting: Setting, columns: Sequence[Column]) -> list[Cell]:
    cells = []
    for column in columns:
        values = [column.value_of(run) for run in setting.runs]
        cells.append(Cell([value for value in values if value is not None]))
    return cells


def _with_best(rows: Sequence[TableRow], columns: Sequence[Column]) -> list[TableRow]:
    """Mark the best cell of each column, where there is more than one to choose from."""
    best: list[float | None] = []
    for place, column in enumerate(columns):
        means = [row.cells[place].mean for row in rows if row.cells[place].values]
        choose = max if column.is_higher_better else min
        best.append(choose(means) if len(means) > 1 else None)
    marked = []
    for row in rows:
        pairs = zip(row.cells, best, strict=True)
        cells = [cell._replace(is_best=target is not None and cell.mean == target) for cell, target in pairs]
        marked.append(row._replace(cells=cells))
    return marked


def _notes(
    runs: Sequence[JudgedRun], judged: Mapping[str, Mapping[str, Mapping]], over: Sequence[str],
    settings: Sequence[Setting],
) -> Iterator[str]:  # fmt: skip
    """Yield how the figures were made."""
    for name, by_run in judged.items():
        of_runs = list(by_run.values())
        parts = []
        for key, words in (("split", "split {}"), ("decoding", "decoding: {}"), ("tokenizer", "tokenizer {}")):
            value = shared_text(key, of_runs)
            parts += [words.format(value)] if value else []
        parts.append(_num_records(of_runs))
        yield f"{name}: {', '.join(parts)}."
        if any(one.get("task") == "caption" for one in of_runs):
            yield "Metrics of captions are x100."
    revisions = list(dict.fromkeys(run.revision or "not known" for run in runs))
    yield f"git {', '.join(revisions)}{' (+: with changes)' if any('+' in each for each in revisions) else ''}."
    if any(len(setting.runs) > 1 for setting in settings):
        yield f"Mean and standard deviation over {', '.join(over)}; n is the number of runs."


def _num_records(of_runs: Sequence[Mapping]) -> str:
    counts = sorted({one[NUM_RECORDS] for one in of_runs if is_number(one.get(NUM_RECORDS))})
    if not counts:
        return "an unknown number of images"
    what = "answers" if any(one.get("task") == "vqa" for one in of_runs) else "images"
    return f"{' or '.join(f'{count:,}' for count in counts)} {what}"


def _notes_on_published(published: Sequence[Published]) -> Iterator[str]:
    for one in published:
        known = [f"tokenizer {one.tokenizer or 'not known'}", f"split {one.split or 'not known'}"]
        yield f"{DAGGER} {one.name}: as published in {one.source} ({', '.join(known)})."


def as_json(table: RunTable) -> dict:
    """Return a table as `report.json` holds it, on the scale of `metrics.json`."""
    rows = []
    for row in table.rows:
        cells = {}
        for column, cell in zip(table.columns, row.cells, strict=True):
            if cell.values:
                figures = {"mean": cell.mean, "n": len(cell.values), "values": cell.values, "is_best": cell.is_best}
                cells[column.name] = figures if cell.spread is None else figures | {"spread": cell.spread}
        if row.is_published:
            rows.append({"published": row.labels[0], "figures": cells})
        else:
            setting = dict(zip(table.labels, row.labels, strict=True))
            rows.append({"setting": setting, "runs": row.runs, "figures": cells})
    found = {"rows": rows, "notes": table.notes}
    return found | {"mixed": table.mixed} if table.mixed else found
