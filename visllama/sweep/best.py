"""The best job of a sweep: the command that runs it alone, and its evaluation on splits that did not choose it."""

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
    """Return the command line, quoted for a shell, that runs a job of a sweep again as a run of its own.

    The overrides that only a sweep needs are left out: `sweep=`, and the callback that reports to a search. Whether the
    program is `python train.py` or `visllama train` follows from how this process was started.

    Args:
        row: The row of the job in `SweepTable.rows`. Only its `overrides` are read, a list of texts "key=value".
    """
    is_script = Path(sys.argv[0]).name == "train.py"
    program = "python train.py" if is_script else "visllama train"
    overrides = [word for word in row["overrides"] if key_of(word) != "sweep" and not word.startswith(PRUNE)]
    words = [*config_dir_options(), *overrides]
    return f"{program} {shlex.join(words)}"


def unseen_evaluations(config: DictConfig) -> dict[str, dict]:
    """Return the evaluations of a job that measure on another split than validation.

    The scores on validation have chosen the best job of the sweep, so that it looks too good by them.

    Args:
        config: The job's configuration, without Hydra's part.

    Returns:
        The settings of each such evaluation as plain values, by the evaluation's name, in the order of the
        configuration; an empty dictionary where the configuration has `judge=false`.
    """
    if not config.judge:
        return {}
    # The evaluations on validation have ranked the jobs: the best one looks too good by them.
    all_evaluations = evaluations(judging(config))
    return {name: evaluation for name, evaluation in all_evaluations.items() if evaluation["split"] != SELECTING}


def is_judged(folder: Path, unseen: Collection[str]) -> bool:
    """Return whether a job's `metrics.json` holds the results of all named evaluations; False if the file is missing.

    Args:
        folder: The folder of the job.
        unseen: The names of the evaluations, which are the keys that `unseen_evaluations` returns.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        return False
    judged = json.loads(path.read_text(encoding="utf-8"))["evaluations"]
    return set(unseen) <= set(judged)


def judge_unseen(folder: Path, config: DictConfig) -> None:
    """Run the evaluations that `unseen_evaluations` returns on the trained weights of a job, and store their scores.

    The scores are added to the job's `metrics.json`, to the web page `index.html` in its folder, and to the experiment
    trackers that its configuration names under `logger`.

    Args:
        folder: The folder of the job, which holds `weights`, `metrics.json` and `config.yaml`.
        config: The job's configuration, without Hydra's part.

    Raises:
        FileNotFoundError: If the folder has no `metrics.json`.
    """
    # Imported here, since they import torch.
    from visllama.evaluation.report import write_json
    from visllama.evaluation.runner import JudgeSettings, judge_weights
    from visllama.tracking.loggers import build_trackers, closing, log_results
    from visllama.tracking.tracker import Tracker

    metrics = json.loads((folder / "metrics.json").read_text())
    settings = JudgeSettings.of_config(judging(config))
    scores = judge_weights(folder / "weights", unseen_evaluations(config), settings, folder)
    # Written before the trackers are asked: whatever they do, the scores are kept.
    metrics["evaluations"] |= scores
    write_json(folder / "metrics.json", metrics)
    write_index(folder)

    job_config = read_config(folder / "config.yaml")
    trackers = build_trackers(job_config["logger"], config.plugins)
    with closing(trackers):
        for tracker in trackers:
            # Trackio forgets the configuration of a run that it is not given again.
            if isinstance(tracker, Tracker):
                tracker.log_hyperparams(job_config | {"provenance": metrics["provenance"]})
        log_results(trackers, scores, folder, metrics["train"]["steps"])
