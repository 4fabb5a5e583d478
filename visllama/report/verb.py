"""The verb `report`: compare two runs by a paired test over images, or many runs in a table.

All that the runs' folders hold is read and checked before anything is written.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visllama.config.invocation import run_folder
from visllama.config.schema import ReportConfig
from visllama.console import say, working
from visllama.errors import ConfigError
from visllama.evaluation.report import provenance, write_json
from visllama.files import write_whole
from visllama.report.columns import find_columns
from visllama.report.curves import draw_curves
from visllama.report.formats import FORMATS, terminal_table
from visllama.report.judged_run import JudgedRun, read_runs
from visllama.report.page import write_page
from visllama.report.paired import Scored, as_json, compare, most_changed, read_pair, shared_evaluations
from visllama.report.printed import comparison_table, names_of
from visllama.report.published import read_published
from visllama.report.run_folders import find_folders
from visllama.report.settings import check_keys, differing_keys
from visllama.report.shown import Texts, ids_with_pictures, show
from visllama.report.table import RunTable, build_table
from visllama.report.table import as_json as table_as_json

_OVER = ("seed",)
_OF_TABLES = ("rows", "over", "columns", "published", "out")
"""The keys that are of use for tables only: two runs become a table where one of them is given."""


@dataclass(frozen=True)
class Report:
    """The runs that are reported, read and checked.

    Attributes:
        runs: The runs.
        scored: The scores of two runs in each evaluation in which they are compared, by its name; empty where a
            table is made.
        table: The table; None where two runs are compared image by image.
    """

    runs: list[JudgedRun]
    scored: dict[str, Scored] = field(default_factory=dict)
    table: RunTable | None = None


def assemble(config: ReportConfig) -> Report:
    """Read the runs that the configuration names, and check that they may be compared; nothing is written.

    Two runs are compared image by image, unless a key is given that asks for a table (`rows`, `over`, `columns`,
    `published`, `out`, or a `format` other than "text"). More runs become a table.

    Args:
        config: The configuration of the verb.

    Returns:
        The runs, and either their scores in each shared evaluation or their table.

    Raises:
        ConfigError: If fewer than two runs are named, if a run or a file of its scores is not there, if the runs were
            judged under different conditions or on different images, or if a key, evaluation or figure is named that
            they do not have.
    """
    words = names(config.runs) or []
    folders = find_folders(words)
    runs = read_runs(folders)
    if len(runs) < 2:
        typed_runs = ",".join(words)
        raise ConfigError(
            f"runs={typed_runs}: is one run, {runs[0].folder}: give another one beside it, as 'runs=[A,B]', or a "
            f"pattern in quotes that matches several"
        )

    # Two runs are tested against each other, image by image, unless a key asks for a table.
    if len(runs) > 2 or _asks_for_table(config):
        return Report(runs, table=_build_table(config, runs))

    first, second = runs
    scored = {}
    for pair in shared_evaluations(first, second, names(config.evaluations)):
        scored[pair.name] = read_pair(first, second, pair, config.mixed)
    return Report(runs, scored=scored)


def names(value: object) -> list[str] | None:
    """Return the value of a key that takes one or several names as a list of texts; None where the value is None."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [str(each) for each in value]
    return [str(value)]


def _asks_for_table(config: ReportConfig) -> bool:
    """Return whether a key is given that makes a table of two runs too."""
    if config.format != "text":
        return True
    values = [getattr(config, key) for key in _OF_TABLES]
    return any(value is not None for value in values)


def _build_table(config: ReportConfig, runs: Sequence[JudgedRun]) -> RunTable:
    """Return the table that the configuration asks for.

    Raises:
        ConfigError: If a key names what no run has, or the runs cannot stand in one table.
    """
    # By default rows are averaged over seeds, and set apart by whatever else differs.
    over = names(config.over)
    if over is None:
        over = list(_OVER)
    else:
        check_keys("over", over, runs)

    rows = names(config.rows)
    if rows is None:
        rows = differing_keys(runs, over)
    else:
        check_keys("rows", rows, runs)

    names_of_columns = names(config.columns)
    columns = find_columns(runs, names_of_columns, names(config.evaluations))
    published = read_published(Path(config.published)) if config.published else []
    return build_table(runs, rows, over, columns, published, config.mixed)


def report(config: ReportConfig, assembled: Report) -> dict[str, Any]:
    """Compare the runs, print the result, and write it into the run's folder.

    The files are `report.json`, `curves.png` where a run has logged losses, and either `report.html` (two runs) or the
    table in the chosen format. With `out` a second copy of the table is written there.

    Args:
        config: The configuration of the verb.
        assembled: The runs, as `assemble` returns them for this configuration.

    Returns:
        The content of `report.json`, without its provenance.

    Raises:
        ConfigError: If a metric of a `scores.jsonl` cannot be computed as a finite number.
        WriteFailed: If a file cannot be written.
    """
    folder = run_folder()
    runs = assembled.runs
    table = assembled.table
    names_and_folders = [{"name": run.name, "folder": str(run.folder)} for run in runs]
    content: dict[str, Any] = {"runs": names_and_folders}
    file_names = ["report.json"]

    # Runs of files, and runs of `evaluate`, have logged no losses.
    curves_path = folder / "curves.png"
    has_curves = draw_curves(curves_path, runs)
    if has_curves:
        file_names.append(curves_path.name)

    if table is not None:
        content |= table_as_json(table)
        file_names += _write_table(config, table, folder)
    else:
        shown_curves = curves_path if has_curves else None
        content |= _write_comparisons(config, assembled, folder, shown_curves)
        file_names.append("report.html, which shows what changed most")
    write_json(folder / "report.json", content | {"provenance": provenance()})

    listed_files = ", ".join(file_names)
    say(f"Wrote {folder}: {listed_files}")
    if table is not None:
        first, second, *_ = runs
        example = shlex.quote(f"runs=[{first.folder},{second.folder}]")
        say(f"Two of them, image by image:  visllama report {example}")
    return content


def _write_table(config: ReportConfig, table: RunTable, folder: Path) -> list[str]:
    """Print the table, write it in the format that is asked for, and return the names of the files."""
    ending, write = FORMATS[config.format]
    text = write(table)
    say(terminal_table(table) if config.format == "text" else text)

    name = f"table.{ending}"
    write_whole(folder / name, text)
    # `out` is a second copy, for example in the folder of a paper.
    if config.out is None:
        return [name]
    write_whole(Path(config.out), text)
    return [name, config.out]


def _write_comparisons(
    config: ReportConfig,
    assembled: Report,
    folder: Path,
    curves: Path | None,
) -> dict[str, dict[str, Any]]:
    """Compare two runs in each evaluation, print the comparisons, and write the page.

    Args:
        config: The configuration.
        assembled: The two runs and their evaluations.
        folder: The folder that the page is written to.
        curves: Path of the plot of both runs' losses; None where there is none.

    Returns:
        The part of `report.json` that holds the comparisons.
    """
    first, second = assembled.runs
    say(names_of(assembled.runs))

    comparisons = {}
    images_on_page = {}
    content = {}
    for name, scored in assembled.scored.items():
        # Resampling takes seconds, in which nothing would move on the terminal.
        with working() as show_step:
            show_step(f"{name}: resampling")
            comparison = compare(scored, first.name, second.name)

            texts_of_first = Texts(first, scored.pair.first, scored.task)
            texts_of_second = Texts(second, scored.pair.second, scored.task)
            pictured = ids_with_pictures([texts_of_first, texts_of_second])
            # Chosen by whether a picture is there, because a card without one tells little.
            changed_images = most_changed(comparison, config.num_pictures, pictured)

            show_step(f"{name}: pictures")
            images_on_page[name] = show(changed_images, texts_of_first, texts_of_second)

        comparisons[name] = comparison
        content[name] = as_json(comparison, changed_images)
        say(comparison_table(comparison))

    write_page(folder / "report.html", assembled.runs, comparisons, images_on_page, curves)
    return {"evaluations": content}
