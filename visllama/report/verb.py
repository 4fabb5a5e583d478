"""The verb `report`: two runs are tested in pairs of images, and many become a table.

All that the runs' folders hold is read and checked before anything is written.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
_OF_TABLES = ("over", "columns", "published", "out")
"""The keys that say something of tables alone."""


@dataclass(frozen=True)
class Report:
    """What is reported, read and found fit to be compared.

    Attributes:
        runs: The runs.
        scored: The evaluations of two runs, by name; None where a table is asked for.
        table: The table; None where two runs are tested.
    """

    runs: list[JudgedRun]
    scored: dict[str, Scored] | None = None
    table: RunTable | None = None


def assemble(config: ReportConfig) -> Report:
    """Read the runs, and check that they may be compared.

    Raises:
        ConfigError: If they are not there, or were judged otherwise, or nothing of them is what is asked for.
    """
    words = names(config.runs)
    runs = read_runs(find_folders(words))
    if len(runs) < 2:
        raise ConfigError(
            f"runs={','.join(words)}: is one run, {runs[0].folder}: give another one beside it, as 'runs=[A,B]', or a "
            f"pattern in quotes that matches several"
        )
    if len(runs) == 2 and config.rows is None and not _asks_for_table(config):
        pairs = shared_evaluations(*runs, names(config.evaluations))
        return Report(runs, scored={pair.name: read_pair(*runs, pair, config.mixed) for pair in pairs})
    return Report(runs, table=_build_table(config, runs))


def names(value: object) -> list[str] | None:
    """Return one or several names of the configuration as a list; None where none is given."""
    if value is None:
        return None
    return [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]


def _asks_for_table(config: ReportConfig) -> bool:
    return config.format != "text" or any(getattr(config, key) is not None for key in _OF_TABLES)


def _build_table(config: ReportConfig, runs: Sequence[JudgedRun]) -> RunTable:
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
    columns = find_columns(runs, names(config.columns), names(config.evaluations))
    published = read_published(Path(config.published)) if config.published else []
    return build_table(runs, rows, over, columns, published, config.mixed)


def report(config: ReportConfig, found: Report) -> dict:
    """Compare the runs; writes the run folder.

    Returns:
        The content of `report.json`.
    """
    folder = run_folder()
    content = {"runs": [{"name": run.name, "folder": str(run.folder)} for run in found.runs]}
    curves = folder / "curves.png"
    has_curves = draw_curves(curves, found.runs)
    written = ["report.json", *(["curves.png"] if has_curves else [])]
    if found.table is not None:
        content |= table_as_json(found.table)
        written += _write_table(config, found.table, folder)
    else:
        content |= _write_comparisons(config, found, folder, curves if has_curves else None)
        written.append("report.html, which shows what changed most")
    write_json(folder / "report.json", content | {"provenance": provenance()})
    say(f"Wrote {folder}: {', '.join(written)}")
    if found.table is not None:
        first, second = (run.folder for run in found.runs[:2])
        say(f"Two of them, image by image:  visllama report {shlex.quote(f'runs=[{first},{second}]')}")
    return content


def _write_table(config: ReportConfig, table: RunTable, folder: Path) -> list[str]:
    """Print the table, and write it in the format that is asked for; returns the names of the files."""
    ending, write = FORMATS[config.format]
    text = write(table)
    say(terminal_table(table) if config.format == "text" else text)
    name = f"table.{ending}"
    write_whole(folder / name, text)
    if config.out is None:
        return [name]
    write_whole(Path(config.out), text)
    return [name, str(config.out)]


def _write_comparisons(config: ReportConfig, found: Report, folder: Path, curves: Path | None) -> dict:
    """Compare two runs in each evaluation, print it, and write the page; returns what `report.json` holds of it."""
    first, second = found.runs
    say(names_of(found.runs))
    comparisons = {}
    shown = {}
    content = {}
    for name, scored in found.scored.items():
        with working() as tell:
            tell(f"{name}: resampling")
            comparison = compare(scored, first.name, second.name)
            texts = [
                Texts(run, evaluation, scored.task) for run, evaluation in zip(found.runs, scored.pair, strict=True)
            ]
            changed = most_changed(comparison, config.num_pictures, ids_with_pictures(texts))
            tell(f"{name}: pictures")
            shown[name] = show(changed, *texts)
        comparisons[name] = comparison
        content[name] = as_json(comparison, changed)
        say(comparison_table(comparison))
    write_page(folder / "report.html", found.runs, comparisons, shown, curves)
    return {"evaluations": content}
