"""The table of a sweep (`--multirun`): jobs are ranked by a score on validation; the best one alone is judged on test.

A row of the table is a dictionary of one job's facts: `job` (its number), `overrides`, `folder`, and either `error` or
`scores`, `splits` and `intervals`. At the end of the sweep each row gets `swept`, the values of the keys that vary.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from math import isfinite
from operator import itemgetter
from pathlib import Path
from statistics import mean, stdev
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.table import Table

from visllama.config.objective import PRUNED, VAL_LOSS, Objective, find_objective, main_objectives
from visllama.config.selection import SELECTING, are_rivals, ranges_in, swept_keys
from visllama.console import printable, say
from visllama.errors import ConfigError
from visllama.evaluation.index_page import write_index
from visllama.files import write_whole
from visllama.sweep.best import best_command, is_judged, judge_unseen, unseen_evaluations
from visllama.sweep.plot import numeric_keys, plot_scores


class SweepTable(Callback):
    """Hydra's callback of a sweep: collect the results of the jobs, and rank the jobs at the end of the sweep.

    The best job is then evaluated on the splits other than validation. Hydra makes the object, and calls its methods
    `on_...`. A launcher or sweeper that runs jobs in other processes calls `add`.

    Attributes:
        rows: The row of each job, in the order in which they were added; `sweep.json` holds them ranked.
        configs: The configuration of each job that `add` was called for, by the number of the job.
        compose: A function that returns the configuration of the job of a row, for jobs that are not in `configs`. A
            search sets it; else it is None.
        importances: The share that each key of a search has in what sets good jobs apart, by key. A search sets it;
            else it is empty.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.configs: dict[int, DictConfig] = {}
        self.compose: Callable[[dict[str, Any]], DictConfig] | None = None
        self.importances: dict[str, float] = {}

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Add the result of a job that has ended in this process; Hydra calls it. A run outside a sweep adds nothing.

        Args:
            config: The job's configuration, without Hydra's part.
            job_return: The result of the job.

        Raises:
            Exception: The error of the job, if it has failed with one.
        """
        # The return value of a failed job raises its error again.
        hydra = cast(DictConfig, HydraConfig.get())
        if hydra.mode == RunMode.MULTIRUN:
            self.add(hydra, config, job_return.return_value)

    def add(self, hydra: DictConfig, config: DictConfig, result: object) -> None:
        """Add a row with the result of a job to `rows`, and the job's configuration to `configs`.

        Args:
            hydra: The group `hydra` of the job's configuration.
            config: The job's configuration without that group.
            result: The dictionary that the command `train` has returned (the content of `metrics.json`), or the error
                of the job as an exception. Any other value, such as that of another command, adds nothing.
        """
        row: dict[str, Any] = {
            "job": hydra.job.num,
            "overrides": list(hydra.overrides.task),
            "folder": hydra.runtime.output_dir,
        }
        if isinstance(result, dict) and "train" in result:
            row |= _scores(config, result)
        elif isinstance(result, Exception):
            row["error"] = str(result)
        else:
            return

        self.rows.append(row)
        self.configs[hydra.job.num] = config

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Rank the jobs, print and write their table, and evaluate the best job; Hydra calls it at the end of a sweep.

        The sweep's folder gets `sweep.json`, `index.html` and, if a key that varies is a number, `sweep.png`. The best
        job is evaluated on the splits other than validation, if the jobs differ in a key other than `seed`. Without
        rows nothing is done.

        Args:
            config: The whole configuration of the sweep, with the group `hydra`.

        Raises:
            SystemExit: With code 2 for a `ConfigError`; with code 1 for another error, or if a job has failed.
        """
        if not self.rows:
            return

        # Hydra would make a warning of an error here, and exit with 0.
        try:
            self._end(config)
        except ConfigError as error:
            print(f"visllama train: {printable(error)}", file=sys.stderr, flush=True)
            sys.exit(2)
        except Exception:
            traceback.print_exc()
            sys.exit(1)

    def _end(self, config: DictConfig) -> None:
        """Show the table, write `sweep.json`, `sweep.png` and `index.html`, and judge the best job."""
        folder = Path(config.hydra.sweep.dir)
        keys = swept_keys(folder)
        self._add_swept_values(keys)

        trained = [row for row in self.rows if "error" not in row]
        failed = [row for row in self.rows if "error" in row]
        objective = None
        if trained:
            first_config = self._config(trained[0])
            objective = find_objective(first_config)
        ranked = _rank(trained, objective)
        unranked = [row for row in self.rows if row not in ranked]
        rows = ranked + unranked
        split = _split(ranked, objective)

        table = _table(keys, rows, objective, split)
        say(table)
        if keys == ["seed"]:
            self._say_spread(trained)

        # Seeds of one setting have no best: to choose among them would be to choose by luck.
        has_best = bool(ranked) and are_rivals(keys)
        best_line = best_command(ranked[0]) if has_best else None
        _write(folder / "sweep.json", rows, objective, split, best_line, self.importances)
        if objective is not None:
            _plot(folder, keys, ranked, objective, split)
        write_index(folder)

        self._say_importances()
        say(f"Wrote {folder}: sweep.json; index.html shows and links all jobs")
        if failed:
            num_failed = len(failed)
            num_jobs = len(self.rows)
            first_error = printable(failed[0]["error"])
            say(f"{num_failed} of {num_jobs} jobs failed; the first: {first_error}")

        if has_best:
            say(f"The best as a run of its own:  {best_line}")
            self._judge_best(ranked[0])
        if failed:
            sys.exit(1)

    def _add_swept_values(self, keys: list[str]) -> None:
        """Add the values of the keys that vary to each row, as its overrides have set them."""
        parser = OverridesParser.create()
        for row in self.rows:
            overrides = parser.parse_overrides(row["overrides"])
            values = {override.key_or_group: override.value() for override in overrides}
            row["swept"] = {key: values[key] for key in keys}

    def _say_importances(self) -> None:
        """Print how much each key of a search matters, if a search has set `importances`."""
        # A search of few trials has none, and neither has a grid.
        if not self.importances:
            return
        shares = [f"{key} {share:.2f}" for key, share in self.importances.items()]
        share_list = ", ".join(shares)
        say(f"What sets the jobs apart (importance, PED-ANOVA): {share_list}")

    def _config(self, row: dict[str, Any]) -> DictConfig:
        """Return the configuration of the job of a row, composing it if the job ran in an earlier process."""
        number = row["job"]
        if number not in self.configs and self.compose is not None:
            self.configs[number] = self.compose(row)
        return self.configs[number]

    def _say_spread(self, trained: list[dict]) -> None:
        """Print the mean and the standard deviation of each main score over jobs that differ in their seeds alone."""
        if not trained:
            return
        config = self._config(trained[0])
        for objective in main_objectives(config):
            values = []
            for row in trained:
                score = row["scores"].get(objective.name)
                if score is not None:
                    values.append(score)
            # One value has no standard deviation.
            if len(values) > 1:
                shown_mean = objective.show(mean(values))
                shown_stdev = objective.show(stdev(values))
                spread = f"mean {shown_mean}, standard deviation {shown_stdev}"
                say(f"{objective.title} over {len(values)} seeds: {spread}")

    def _judge_best(self, best: dict) -> None:
        """Judge the best job on the splits that did not choose it, unless that is done already, and say so."""
        config = self._config(best)
        folder = Path(best["folder"])
        unseen = unseen_evaluations(config)
        names = ", ".join(unseen)
        best_values = f"Best on {SELECTING}: {best['swept']}"
        if not unseen:
            say(f"{best_values}. No evaluation of another split is left to judge it on.")
            return
        # A search that has gone on may have found nothing better than the job that it has judged before.
        if is_judged(folder, unseen):
            say(f"{best_values}. It has been judged on {names}: {best['folder']}")
            return

        splits = {evaluation["split"] for evaluation in unseen.values()}
        split_list = " and ".join(sorted(splits))
        say(f"{best_values}. It alone is judged on {split_list} ({names}):")
        judge = partial(judge_unseen, folder, config)
        hydra = cast(DictConfig, HydraConfig.get())
        launcher_name = hydra.runtime.choices.get("hydra/launcher")
        if launcher_name == "slurm":
            # The login node of a cluster is not for such work. Imported here, since submitit is an extra.
            from visllama.sweep.queue import run_in_queue

            run_in_queue(judge, hydra.launcher)
        else:
            judge()


def _scores(config: DictConfig, result: Mapping) -> dict[str, Any]:
    """Return what a job measured, as a part of its row.

    Args:
        config: The job's configuration.
        result: What the verb `train` has returned.

    Returns:
        `scores` (by names as "EVALUATION/METRIC" or "val/loss"; None for a score that is not finite), `splits` (of each
        evaluation), `intervals` (by the names of scores), and `pruned_step` if the trial was ended early.
    """
    judged = result["evaluations"]
    train = result["train"]
    # `config.plain` adds the split to the names of evaluations that it moves to validation.
    is_renamed = set(judged) != set(config.evaluation)

    scores = {}
    splits = {}
    intervals = {}
    for name, evaluation in judged.items():
        split = evaluation["split"]
        config_name = name.removesuffix(f"_{split}") if is_renamed else name
        splits[config_name] = split
        for metric, value in evaluation["metrics"].items():
            scores[f"{config_name}/{metric}"] = value
        for metric, interval in evaluation.get("intervals", {}).items():
            intervals[f"{config_name}/{metric}"] = interval
    if VAL_LOSS in train:
        scores[VAL_LOSS] = train[VAL_LOSS]

    # JSON has no number for those that are not finite, and no job is better by one.
    for name, value in scores.items():
        if value is not None and not isfinite(value):
            scores[name] = None

    row: dict[str, Any] = {"scores": scores, "splits": splits, "intervals": intervals}
    pruned_step = train.get(PRUNED)
    if pruned_step is not None:
        row[PRUNED] = pruned_step
    return row


def _rank(rows: list[dict], objective: Objective | None) -> list[dict]:
    """Return the jobs that measured the objective, the best first, without those that were ended early."""
    if objective is None:
        return []

    # A job that was ended early has trained less than the others: its scores are not comparable.
    scored_rows = []
    for row in rows:
        score = _score(row, objective)
        if PRUNED not in row and score is not None:
            scored_rows.append((score, row))

    # Rows are dictionaries, which have no order: only the scores are compared.
    scored_rows.sort(key=itemgetter(0), reverse=objective.is_higher_better)
    return [row for _, row in scored_rows]


def _score(row: dict, objective: Objective | None) -> float | None:
    """Return a job's score by the objective; None if it failed, or did not measure it."""
    if objective is None:
        return None
    scores = row.get("scores", {})
    return scores.get(objective.name)


def _state(row: dict) -> str:
    """Return the word that the table shows in place of a score, for a job without a rank."""
    if "error" in row:
        return "failed"
    return "pruned" if PRUNED in row else "none"


def _split(ranked: list[dict], objective: Objective | None) -> str | None:
    """Return the split that the objective was measured on; None if no job has measured it."""
    if objective is None or not ranked:
        return None
    # The loss belongs to no evaluation: it is measured on validation.
    splits = ranked[0]["splits"]
    return splits.get(objective.evaluation, SELECTING)


def _write(
    path: Path,
    rows: list[dict],
    objective: Objective | None,
    split: str | None,
    best_line: str | None,
    importances: Mapping[str, float],
) -> None:
    """Write `sweep.json`, whole or not at all."""
    content: dict[str, object] = {
        "objective": objective and objective.name,
        "direction": objective and objective.direction,
        "split": split,
        "jobs": rows,
        "best": best_line,
    }
    if importances:
        content["importances"] = dict(importances)
    text = json.dumps(content, indent=2)
    write_whole(path, text + "\n")


def _plot(folder: Path, keys: list[str], ranked: list[dict], objective: Objective, split: str | None) -> None:
    """Draw `sweep.png`, if a key that varies is a number."""
    numeric = numeric_keys(keys, ranked)
    if not numeric:
        return
    log_keys = [key_range.key for key_range in ranges_in(folder) if key_range.is_log]
    header = _header(objective, split)
    plot_scores(numeric, ranked, objective, header, log_keys, folder / "sweep.png")


def _table(keys: list[str], rows: list[dict], objective: Objective | None, split: str | None) -> Table:
    """Return the table of the jobs, the best first."""
    title = "Sweep: nothing to rank by was measured"
    if objective:
        title = f"Sweep by {objective.name}: {objective.direction}"
    table = Table("rank", *keys, title=title)
    if objective:
        table.add_column(_header(objective, split), justify="right")
    # The loss is shown beside another objective: a job may be good by one of them alone.
    has_loss = objective is not None and objective.name != VAL_LOSS
    if has_loss:
        table.add_column("val loss", justify="right")
    table.add_column("folder")

    # The rows that have a rank come first, so that the number of a row is its rank.
    for rank, row in enumerate(rows, start=1):
        score = None if PRUNED in row else _score(row, objective)
        shown_rank = "" if score is None else str(rank)
        swept = row["swept"]
        cells = [shown_rank, *(str(swept[key]) for key in keys)]
        if objective:
            shown_score = _state(row) if score is None else objective.show(score)
            cells.append(shown_score)

        if has_loss:
            scores = row.get("scores", {})
            loss = scores.get(VAL_LOSS)
            shown_loss = "" if loss is None else f"{loss:.3f}"
            cells.append(shown_loss)
        folder_name = Path(row["folder"]).name
        table.add_row(*cells, folder_name)
    return table


def _header(objective: Objective, split: str | None) -> str:
    """Return the header of the scores, for example "val CIDEr x100"."""
    return f"{split or ''} {objective.label}".strip()
