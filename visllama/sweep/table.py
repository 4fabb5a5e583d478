"""A sweep (`--multirun`): jobs are compared on validation; test is scored once, for the chosen one."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from math import isfinite
from pathlib import Path
from statistics import mean, stdev
from typing import Any

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
    """Hydra's callback: collect each job's result, rank them at the end, and judge the best on what did not rank it.

    Attributes:
        rows: What is kept of each job; `sweep.json` holds them.
        configs: The config of each job that ran in this process, by its number.
        compose: Of a search that goes on, what composes the config of an earlier job from its row.
        importances: Of a search, the share of each key in what sets its jobs apart.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.configs: dict[int, DictConfig] = {}
        self.compose: Callable[[dict[str, Any]], DictConfig] | None = None
        self.importances: dict[str, float] = {}

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        # Asked for what a failed job has returned, Hydra tells its error again.
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            self.add(HydraConfig.get(), config, job_return.return_value)

    def add(self, hydra: DictConfig, config: DictConfig, result: object) -> None:
        """Take in what a job has returned, with its Hydra's and its own config."""
        has_trained = isinstance(result, dict) and "train" in result
        if not (has_trained or isinstance(result, Exception)):
            return  # a job that trains nothing has no row, unless it failed
        row = {"job": hydra.job.num, "overrides": list(hydra.overrides.task), "folder": hydra.runtime.output_dir}
        row |= _scores(config, result) if has_trained else {"error": str(result)}
        self.rows.append(row)
        self.configs[hydra.job.num] = config

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """End the sweep, and the program where that fails: Hydra would make a warning of it, and exit with 0."""
        if not self.rows:
            return
        try:
            self._end(config)
        except ConfigError as error:
            print(f"visllama train: {printable(error)}", file=sys.stderr, flush=True)
            sys.exit(2)
        except Exception:
            traceback.print_exc()
            sys.exit(1)

    def _end(self, config: DictConfig) -> None:
        folder = Path(config.hydra.sweep.dir)
        keys = swept_keys(folder)
        for row in self.rows:
            values = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(row["overrides"])}
            row["swept"] = {key: values[key] for key in keys}

        trained = [row for row in self.rows if "error" not in row]
        objective = find_objective(self._config(trained[0])) if trained else None
        ranked = _rank(trained, objective)
        rows = ranked + [row for row in self.rows if row not in ranked]
        split = _split(ranked, objective)
        say(_table(keys, rows, objective, split))
        if keys == ["seed"]:
            self._say_spread(trained)
        best_line = best_command(ranked[0]) if ranked and are_rivals(keys) else None
        _write(folder / "sweep.json", rows, objective, split, best_line, self.importances)
        log_keys = [each.key for each in ranges_in(folder) if each.is_log]
        numeric = numeric_keys(keys, ranked)
        if numeric:
            plot_scores(numeric, ranked, objective, _header(objective, split), log_keys, folder / "sweep.png")
        write_index(folder)
        if self.importances:
            shares = ", ".join(f"{key} {share:.2f}" for key, share in self.importances.items())
            say(f"What sets the jobs apart (importance, PED-ANOVA): {shares}")
        say(f"Wrote {folder}: sweep.json; index.html shows and links all jobs")
        failed = [row for row in self.rows if "error" in row]
        if failed:
            say(f"{len(failed)} of {len(self.rows)} jobs failed; the first: {printable(failed[0]['error'])}")
        if best_line:
            say(f"The best as a run of its own:  {best_line}")
        if ranked and are_rivals(keys):
            self._judge_best(ranked[0])
        if failed:
            sys.exit(1)

    def _config(self, row: dict[str, Any]) -> DictConfig:
        """Return the config of a job."""
        if row["job"] not in self.configs and self.compose is not None:
            self.configs[row["job"]] = self.compose(row)
        return self.configs[row["job"]]

    def _say_spread(self, trained: list[dict]) -> None:
        """Return how far the seeds of one setting differ."""
        for objective in main_objectives(self._config(trained[0])) if trained else ():
            values = [row["scores"].get(objective.name) for row in trained]
            values = [value for value in values if value is not None]
            if len(values) > 1:
                spread = f"mean {objective.show(mean(values))}, standard deviation {objective.show(stdev(values))}"
                say(f"{objective.title} over {len(values)} seeds: {spread}")

    def _judge_best(self, best: dict) -> None:
        config = self._config(best)
        unseen = unseen_evaluations(config)
        if not unseen:
            say(f"Best on {SELECTING}: {best['swept']}. No evaluation of another split is left to judge it on.")
            return
        if is_judged(Path(best["folder"]), unseen):  # by a search that has gone on since, and found nothing better
            say(f"Best on {SELECTING}: {best['swept']}. It has been judged on {', '.join(unseen)}: {best['folder']}")
            return
        splits = " and ".join(sorted({evaluation["split"] for evaluation in unseen.values()}))
        say(f"Best on {SELECTING}: {best['swept']}. It alone is judged on {splits} ({', '.join(unseen)}):")
        judged = partial(judge_unseen, Path(best["folder"]), config)
        if HydraConfig.get().runtime.choices.get("hydra/launcher") == "slurm":  # no work for a login node
            from visllama.sweep.queue import run_in_queue

            run_in_queue(judged, HydraConfig.get().launcher)
        else:
            judged()


def _scores(config: DictConfig, result: Mapping) -> dict[str, dict]:
    """Return all that a job measured, by the names that an objective has, and the split of each evaluation."""
    judged = result["evaluations"]
    is_renamed = set(judged) != set(config.evaluation)  # by `config.plain`, after its split
    scores, splits, intervals = {}, {}, {}
    for name, evaluation in judged.items():
        split = evaluation["split"]
        own_name = name.removesuffix(f"_{split}") if is_renamed else name
        splits[own_name] = split
        for metric, value in evaluation["metrics"].items():
            scores[f"{own_name}/{metric}"] = value
        for metric, interval in evaluation.get("intervals", {}).items():
            intervals[f"{own_name}/{metric}"] = interval
    if VAL_LOSS in result["train"]:
        scores[VAL_LOSS] = result["train"][VAL_LOSS]
    # JSON has no number for those that are not finite, and no job is better by one.
    finite = {name: value if value is not None and isfinite(value) else None for name, value in scores.items()}
    row = {"scores": finite, "splits": splits, "intervals": intervals}
    pruned = result["train"].get(PRUNED)
    return row if pruned is None else row | {PRUNED: pruned}


def _rank(rows: list[dict], objective: Objective | None) -> list[dict]:
    """Return the jobs that measured the objective, the best first; those that were ended early are none of them."""
    if objective is None:
        return []
    measured = [row for row in rows if PRUNED not in row and _score(row, objective) is not None]
    return sorted(measured, key=lambda row: _score(row, objective), reverse=objective.is_higher_better)


def _score(row: dict, objective: Objective | None) -> float | None:
    """Return a job's objective; None where it failed, or did not measure it."""
    return row.get("scores", {}).get(objective.name) if objective else None


def _state(row: dict) -> str:
    """Return why a job has no rank."""
    if "error" in row:
        return "failed"
    return "pruned" if PRUNED in row else "none"


def _split(ranked: list[dict], objective: Objective | None) -> str | None:
    """Return the split that the objective was measured on."""
    if not ranked:
        return None
    return ranked[0]["splits"].get(objective.evaluation, SELECTING)


def _write(
    path: Path,
    rows: list[dict],
    objective: Objective | None,
    split: str | None,
    best_line: str | None,
    importances: Mapping[str, float],
) -> None:
    content = {
        "objective": objective and objective.name,
        "direction": objective and objective.direction,
        "split": split,
        "jobs": rows,
        "best": best_line,
    }
    if importances:
        content["importances"] = dict(importances)
    write_whole(path, json.dumps(content, indent=2) + "\n")


def _table(keys: list[str], rows: list[dict], objective: Objective | None, split: str | None) -> Table:
    title = (
        f"Sweep by {objective.name}: {objective.direction}" if objective else "Sweep: nothing to rank by was measured"
    )
    table = Table("rank", *keys, title=title)
    if objective:
        table.add_column(_header(objective, split), justify="right")
    has_loss = objective and objective.name != VAL_LOSS
    if has_loss:
        table.add_column("val loss", justify="right")
    table.add_column("folder")
    for rank, row in enumerate(rows, start=1):
        score = None if PRUNED in row else _score(row, objective)
        cells = ["" if score is None else str(rank), *[str(row["swept"][key]) for key in keys]]
        if objective:
            cells.append(_state(row) if score is None else objective.show(score))
        if has_loss:
            loss = row.get("scores", {}).get(VAL_LOSS)
            cells.append("" if loss is None else f"{loss:.3f}")
        table.add_row(*cells, Path(row["folder"]).name)
    return table


def _header(objective: Objective, split: str | None) -> str:
    return f"{split or ''} {objective.label}".strip()
