"""The best job of a sweep: its command line, and how it is judged on what did not choose it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from visllama.config.overrides import config_dir_options, key_of
from visllama.config.plain import evaluations, judging
from visllama.config.replay import read_config
from visllama.config.selection import SELECTING
from visllama.evaluation.index_page import write_index
from visllama.sweep.jobs import PRUNE


def best_command(row: Mapping[str, Any]) -> str:
    """Return the command that runs the best job again by itself, without what made it a job of a sweep."""
    program = "python train.py" if Path(sys.argv[0]).name == "train.py" else "visllama train"
    words = [word for word in row["overrides"] if key_of(word) != "sweep" and not word.startswith(PRUNE)]
    return f"{program} {shlex.join([*config_dir_options(), *words])}"


def unseen_evaluations(config: DictConfig) -> dict[str, dict]:
    """Return the evaluations of a job on other records than those that it was chosen by."""
    if not config.judge:
        return {}
    return {name: found for name, found in evaluations(judging(config)).items() if found["split"] != SELECTING}


def is_judged(folder: Path, unseen: Collection[str]) -> bool:
    """Return whether a job's metrics.json holds these evaluations already."""
    path = folder / "metrics.json"
    if not path.is_file():
        return False
    judged = json.loads(path.read_text(encoding="utf-8"))["evaluations"]
    return set(unseen) <= set(judged)


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
