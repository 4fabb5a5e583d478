"""A sweep (`--multirun`): jobs are compared on validation; test is scored once, for the chosen one."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping
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

from visllama.config.objective import VAL_LOSS, Objective, find_objective, main_objectives
from visllama.config.plain import evaluations, judging
from visllama.config.replay import read_config
from visllama.config.selection import SELECTING, are_rivals, swept_keys
from visllama.console import printable, say
from visllama.errors import ConfigError
from visllama.evaluation.index_page import write_index
from visllama.files import replacing, write_whole


class SweepTable(Callback):
    """Hydra's callback: collect each job's result, rank them at the end, and judge the best on what did not rank it.

    Attributes:
        rows: What is kept of each job; `sweep.json` holds them.
        configs: The config of each job, by its number.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.configs: dict[int, DictConfig] = {}

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
        objective = find_objective(self.configs[trained[0]["job"]]) if trained else None
        ranked = _rank(trained, objective)
        rows = ranked + [row for row in self.rows if row not in ranked]
        split = _split(ranked, objective)
        say(_table(keys, rows, objective, split))
        if keys == ["seed"]:
            self._say_spread(trained)
        _write(folder / "sweep.json", rows, objective, split)
        if len(ranked) > 1 and len(keys) == 1:
            _plot(keys[0], ranked, objective, _header(objective, split), folder / "sweep.png")
        write_index(folder)
        say(f"Wrote {folder}: sweep.json; index.html shows and links all jobs")
        failed = [row for row in self.rows if "error" in row]
        if failed:
            say(f"{len(failed)} of {len(self.rows)} jobs failed; the first: {failed[0]['error']}")
        if ranked and are_rivals(keys):
            self._judge_best(ranked[0])
        if failed:
            sys.exit(1)

    def _say_spread(self, trained: list[dict]) -> None:
        """Return how far the seeds of one setting differ."""
        for objective in main_objectives(self.configs[trained[0]["job"]]) if trained else ():
            values = [row["scores"].get(objective.name) for row in trained]
            values = [value for value in values if value is not None]
            if len(values) > 1:
                spread = f"mean {objective.show(mean(values))}, standard deviation {objective.show(stdev(values))}"
                say(f"{objective.title} over {len(values)} seeds: {spread}")

    def _judge_best(self, best: dict) -> None:
        config = self.configs[best["job"]]
        unseen = unseen_evaluations(config)
        if not unseen:
            say(f"Best on {SELECTING}: {best['swept']}. No evaluation of another split is left to judge it on.")
            return
        splits = " and ".join(sorted({evaluation["split"] for evaluation in unseen.values()}))
        say(f"Best on {SELECTING}: {best['swept']}. It alone is judged on {splits} ({', '.join(unseen)}):")
        judged = partial(judge_unseen, Path(best["folder"]), config)
        if HydraConfig.get().runtime.choices.get("hydra/launcher") == "slurm":  # no work for a login node
            from visllama.sweep.queue import run_in_queue

            run_in_queue(judged, HydraConfig.get().launcher)
        else:
            judged()


def unseen_evaluations(config: DictConfig) -> dict[str, dict]:
    """Return the evaluations of a job on other records than those that it was chosen by."""
    if not config.judge:
        return {}
    return {name: found for name, found in evaluations(judging(config)).items() if found["split"] != SELECTING}


def judge_unseen(folder: Path, config: DictConfig) -> None:
    """Judge the weights of a job on what they have not been chosen by; adds it to its `metrics.json` and trackers."""
    from visllama.evaluation.report import write_json
    from visllama.evaluation.runner import JudgeSettings, judge_weights
    from visllama.tracking.loggers import build_trackers, closing, log_results
    from visllama.tracking.tracker import Tracker

    metrics = json.loads((folder / "metrics.json").read_text())
    settings = JudgeSettings.of_config(judging(config))
    scores = judge_weights(folder / "weights", unseen_evaluations(config), settings, folder)
    metrics["evaluations"] |= scores
    write_json(folder / "metrics.json", metrics)
    write_index(folder)

    written = read_config(folder / "config.yaml")
    trackers = build_trackers(written["logger"], config.plugins)
    with closing(trackers):
        for tracker in trackers:
            if isinstance(tracker, Tracker):  # trackio would forget it, where it is not told again
                tracker.log_hyperparams(written | {"provenance": metrics["provenance"]})
        log_results(trackers, scores, folder, metrics["train"]["steps"])


def _scores(config: DictConfig, result: Mapping) -> dict[str, dict]:
    """Return all that a job measured, by the names that an objective has, and the split of each evaluation."""
    judged = result["evaluations"]
    is_renamed = set(judged) != set(config.evaluation)  # by `config.plain`, after its split
    scores, splits = {}, {}
    for name, evaluation in judged.items():
        split = evaluation["split"]
        own_name = name.removesuffix(f"_{split}") if is_renamed else name
        splits[own_name] = split
        for metric, value in evaluation["metrics"].items():
            scores[f"{own_name}/{metric}"] = value
    if VAL_LOSS in result["train"]:
        scores[VAL_LOSS] = result["train"][VAL_LOSS]
    # JSON has no number for those that are not finite, and no job is better by one.
    finite = {name: value if value is not None and isfinite(value) else None for name, value in scores.items()}
    return {"scores": finite, "splits": splits}


def _rank(rows: list[dict], objective: Objective | None) -> list[dict]:
    """Return the jobs that measured the objective, the best first."""
    if objective is None:
        return []
    measured = [row for row in rows if _score(row, objective) is not None]
    return sorted(measured, key=lambda row: _score(row, objective), reverse=objective.is_higher_better)


def _score(row: dict, objective: Objective | None) -> float | None:
    """Return a job's objective; None where it failed, or did not measure it."""
    return row.get("scores", {}).get(objective.name) if objective else None


def _split(ranked: list[dict], objective: Objective | None) -> str | None:
    """Return the split that the objective was measured on."""
    if not ranked:
        return None
    return ranked[0]["splits"].get(objective.evaluation, SELECTING)


def _write(path: Path, rows: list[dict], objective: Objective | None, split: str | None) -> None:
    content = {
        "objective": objective and objective.name,
        "direction": objective and objective.direction,
        "split": split,
        "jobs": rows,
    }
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
        score = _score(row, objective)
        cells = ["" if score is None else str(rank), *[str(row["swept"][key]) for key in keys]]
        if objective:
            missing = "failed" if "error" in row else "none"
            cells.append(missing if score is None else objective.show(score))
        if has_loss:
            loss = row.get("scores", {}).get(VAL_LOSS)
            cells.append("" if loss is None else f"{loss:.3f}")
        table.add_row(*cells, Path(row["folder"]).name)
    return table


def _header(objective: Objective, split: str | None) -> str:
    return f"{split or ''} {objective.label}".strip()


def _plot(key: str, ranked: list[dict], objective: Objective, header: str, path: Path) -> None:
    if not all(isinstance(row["swept"][key], (int, float)) for row in ranked):
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    points = sorted((row["swept"][key], objective.scale * _score(row, objective)) for row in ranked)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(*zip(*points, strict=True), marker="o")
    axes.set(xlabel=key, ylabel=header, xscale="log" if points[0][0] > 0 else "linear")
    axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
