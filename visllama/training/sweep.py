"""A sweep (`--multirun`): jobs are compared on validation; test is scored once, for the chosen one."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from visllama.config import evaluations
from visllama.console import say

_SCORES = {"caption": ("CIDEr", "CIDEr x100", 100), "vqa": ("accuracy", "accuracy", 1)}
"""What each task is compared by, how that is called where it is printed, and how many times larger it is there."""


def is_selecting() -> bool:
    """Tell whether this job is one of rivals, from which the best will be chosen.

    Several seeds of one setting are repeats, not rivals: each is judged on test.
    """
    hydra = HydraConfig.get()
    return hydra.mode == RunMode.MULTIRUN and swept_keys(Path(hydra.sweep.dir)) not in ([], ["seed"])


def swept_keys(folder: Path) -> list[str]:
    """Name the keys that a sweep varies, from the overrides that Hydra wrote down in its folder."""
    written = OmegaConf.load(folder / "multirun.yaml")
    overrides = OverridesParser.create().parse_overrides(list(written.hydra.overrides.task))
    return [override.key_or_group for override in overrides if override.is_sweep_override()]


class SweepTable(Callback):
    """Hydra's callback: collect each job's result, rank them at the end, and judge the best on test."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.configs: dict[int, DictConfig] = {}

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        self.add(HydraConfig.get(), config, job_return.return_value)

    def add(self, hydra: DictConfig, config: DictConfig, result: object) -> None:
        """Take in what a job has returned, with its Hydra's and its own config."""
        if hydra.mode != RunMode.MULTIRUN or not isinstance(result, (dict, Exception)):
            return  # a job that trains nothing has no row, unless it failed
        row = {"job": hydra.job.num, "overrides": list(hydra.overrides.task), "folder": hydra.runtime.output_dir}
        if isinstance(result, dict):
            for name, evaluation in result["evaluations"].items():
                metric, label, scale = _SCORES[evaluation["task"]]
                if metric in evaluation["metrics"]:
                    row["split"] = evaluation["split"]
                    row.setdefault("scores", {})[f"{name}: {label}"] = scale * evaluation["metrics"][metric]
            row["val/loss"] = result["train"].get("val/loss")
        else:
            row["error"] = str(result)
        self.rows.append(row)
        self.configs[hydra.job.num] = config

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        if not self.rows:
            return
        folder = Path(config.hydra.sweep.dir)
        keys = swept_keys(folder)
        for row in self.rows:
            values = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(row["overrides"])}
            row["swept"] = {key: values[key] for key in keys}
        finished = [row for row in self.rows if row.get("scores")]
        ranked = sorted(finished, key=_first, reverse=True) + [row for row in self.rows if row not in finished]
        say(self._table(keys, ranked))
        if keys == ["seed"] and len(finished) > 1:
            for name in finished[0]["scores"]:
                scores = [row["scores"][name] for row in finished]
                spread = f"mean {mean(scores):.1f}, standard deviation {stdev(scores):.1f}"
                say(f"{name} over {len(scores)} seeds: {spread}")
        (folder / "sweep.json").write_text(json.dumps(ranked, indent=2) + "\n")
        if len(finished) > 1 and len(keys) == 1:
            self._plot(keys[0], finished, folder / "sweep.png")
        if finished and keys != ["seed"]:
            self._judge_best(ranked[0])
        say(f"Wrote {folder}: sweep.json" + (", sweep.png" if (folder / "sweep.png").exists() else ""))
        failed = [row for row in self.rows if "error" in row]
        if failed:
            say(f"{len(failed)} of {len(self.rows)} jobs failed; the first: {failed[0]['error']}")
            sys.exit(1)

    @staticmethod
    def _table(keys: list[str], rows: list[dict]) -> Table:
        table = Table("rank", *keys, title="Sweep")
        table.add_column(_header(rows[0]), justify="right")
        table.add_column("val loss", justify="right")
        table.add_column("folder")
        for rank, row in enumerate(rows, start=1):
            is_scored, loss = bool(row.get("scores")), row.get("val/loss")
            cells = [f"{_first(row):.1f}" if is_scored else "failed", "" if loss is None else f"{loss:.3f}"]
            table.add_row(
                str(rank) if is_scored else "",
                *[str(row["swept"][key]) for key in keys],
                *cells,
                Path(row["folder"]).name,
            )
        return table

    @staticmethod
    def _plot(key: str, rows: list[dict], path: Path) -> None:
        if not all(isinstance(row["swept"][key], (int, float)) for row in rows):
            return
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        points = sorted((row["swept"][key], _first(row)) for row in rows)
        figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
        axes.plot(*zip(*points, strict=True), marker="o")
        axes.set(xlabel=key, ylabel=_header(rows[0]), xscale="log" if points[0][0] > 0 else "linear")
        axes.grid(alpha=0.3)
        figure.savefig(path, dpi=110)
        plt.close(figure)

    def _judge_best(self, best: dict) -> None:
        say(f"Best on validation: {best['swept']}. It alone is judged on test:")
        judged = partial(judge_on_test, Path(best["folder"]), self.configs[best["job"]])
        if HydraConfig.get().runtime.choices.get("hydra/launcher") == "slurm":  # no work for a login node
            from visllama.training.slurm import run_in_queue

            run_in_queue(judged, HydraConfig.get().launcher)
        else:
            judged()


def judge_on_test(folder: Path, config: DictConfig) -> None:
    """Judge the weights of a job on what they have not been chosen by, and add it to its `metrics.json`."""
    from visllama.evaluation.report import write_json
    from visllama.evaluation.runner import judge_weights

    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["evaluations"] |= judge_weights(folder / "weights", evaluations(config), config, folder)
    write_json(folder / "metrics.json", metrics)


def _first(row: dict) -> float:
    """Give the score by which jobs are compared: that of the first evaluation."""
    return next(iter(row["scores"].values()))


def _header(row: dict) -> str:
    label = next(iter(row.get("scores", {"": ""}))).partition(": ")[2]
    return f"{row.get('split', 'no')} {label or 'score'}"
