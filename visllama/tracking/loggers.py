"""The loggers of a run: `metrics.csv`, and those that the configuration names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from visllama.config.instantiate import build
from visllama.machine import preemption
from visllama.tracking.metrics_csv import keep_metrics


def build_loggers(nodes: Mapping[str, Mapping], plugins: Sequence[str], folder: Path, first_step: int) -> list[Logger]:
    """Build a run's loggers, the one of `metrics.csv` first.

    Args:
        nodes: The `logger` group of the configuration.
        plugins: The user's packages.
        folder: The run's folder.
        first_step: The step of the checkpoint that the run goes on from; 0 for a new run.
    """
    table = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)  # so that a killed run keeps its rows
    rank_zero_only(keep_metrics)(table, folder, first_step)
    return [table, *build_trackers(nodes, plugins)]


def build_trackers(nodes: Mapping[str, Mapping], plugins: Sequence[str]) -> list[Logger]:
    """Build the loggers that the configuration names.

    Args:
        nodes: The `logger` group of the configuration, resolved.
        plugins: The user's packages.
    """
    return [build(node, plugins) for node in nodes.values()]


@rank_zero_only
def log_scores(loggers: Sequence[Logger], evaluations: Mapping[str, Mapping], step: int) -> None:
    """Give the scores of a run, and those of its controls, to its loggers; `metrics.json` holds them anyway.

    Args:
        loggers: The loggers of a run. `metrics.csv` has a row for each step, and takes no scores.
        evaluations: The scores, as `metrics.json` has them below `evaluations`.
        step: The last step of the run.
    """
    scores = flat_scores(evaluations)
    for logger in loggers:
        if scores and not isinstance(logger, CSVLogger):
            logger.log_metrics(scores, step)
            logger.save()


def flat_scores(evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return each score by `EVALUATION/METRIC`, and each of a control by `EVALUATION/CONTROL/METRIC`."""
    scores = {}
    for name, evaluation in evaluations.items():
        for metric, value in evaluation["metrics"].items():
            scores[f"{name}/{metric}"] = value
        for control, values in evaluation.get("controls", {}).items():
            for metric, value in values.items():
                scores[f"{name}/{control}/{metric}"] = value
    return scores


@contextmanager
def closing(loggers: Sequence[Logger]) -> Iterator[None]:
    """Close the loggers when the run ends, in whatever way it does, also where its process leaves at once.

    Args:
        loggers: The loggers of `build_loggers`.
    """
    preemption.before_leaving(lambda: close_loggers(loggers, preemption.exit_code()))
    exit_code = 1
    try:
        yield
        exit_code = 0
    except preemption.Preempted:
        exit_code = preemption.exit_code()
        raise
    finally:
        close_loggers(loggers, exit_code)
        preemption.before_leaving(None)


@rank_zero_only
def close_loggers(loggers: Sequence[Logger], exit_code: int) -> None:
    """End the runs of trackers that outlive a training: the next job of a sweep would write into the same one.

    Args:
        loggers: The loggers of `build_loggers`.
        exit_code: The code that the tracker shows for the run; 0 where it has ended well.
    """
    if not any(isinstance(logger, WandbLogger) for logger in loggers):
        return

    import wandb  # here: it takes a second, and most runs do not need it

    if wandb.run is not None:
        wandb.finish(exit_code=exit_code)
