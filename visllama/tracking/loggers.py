"""The loggers of a run: `metrics.csv`, and the trackers and other loggers that the configuration names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from visllama.config.instantiate import build
from visllama.machine import preemption
from visllama.tracking.metrics_csv import keep_metrics, logged_names
from visllama.tracking.results import SCORE_COLUMNS, flat_scores, score_rows
from visllama.tracking.tracker import Picture, Tracker


def build_loggers(nodes: Mapping[str, Mapping], plugins: Sequence[str], folder: Path, first_step: int) -> list[Logger]:
    """Build a run's loggers, the one of `metrics.csv` first.

    Args:
        nodes: The `logger` group of the configuration.
        plugins: The user's packages.
        folder: The run's folder.
        first_step: The step of the checkpoint that the run goes on from; 0 for a new run.
    """
    others = build_trackers(nodes, plugins)
    trackers = [logger for logger in others if isinstance(logger, Tracker)]
    if first_step and trackers:
        rank_zero_only(_go_on)(trackers, folder, first_step)
    table = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)  # so that a killed run keeps its rows
    rank_zero_only(keep_metrics)(table, folder, first_step)
    return [table, *others]


def build_trackers(nodes: Mapping[str, Mapping], plugins: Sequence[str]) -> list[Logger]:
    """Build the loggers that the configuration names.

    Args:
        nodes: The `logger` group of the configuration, resolved.
        plugins: The user's packages.
    """
    return [build(node, plugins) for node in nodes.values()]


def _go_on(trackers: Sequence[Tracker], folder: Path, first_step: int) -> None:
    """Let trackers continue a run that was stopped, and take no figure twice."""
    logged = logged_names(folder, first_step)
    for tracker in trackers:
        tracker.go_on(first_step, logged)


@rank_zero_only
def log_pictures(loggers: Sequence[Logger], pictures: Sequence[Picture], step: int) -> None:
    """Send pictures of validation, with what the model writes about them, to the trackers of a run.

    Args:
        loggers: The loggers of a run.
        pictures: The pictures.
        step: The step of the validation, as its figures have it.
    """
    for logger in loggers:
        if isinstance(logger, Tracker) and "val/loss" not in logger.logged.get(step, ()):
            logger.log_pictures("val/pictures", pictures, step)


@rank_zero_only
def log_results(loggers: Sequence[Logger], evaluations: Mapping[str, Mapping], folder: Path, step: int) -> None:
    """Send the scores of a run, those of its controls, and its galleries to its loggers; its folder holds them anyway.

    Args:
        loggers: The loggers of a run. `metrics.csv` has a row for each step, and takes no scores.
        evaluations: The scores, as `metrics.json` has them below `evaluations`.
        folder: The run's folder.
        step: The last step of the run.
    """
    scores, rows = flat_scores(evaluations), score_rows(evaluations)
    for logger in loggers:
        if not scores or isinstance(logger, CSVLogger):
            continue

        logger.log_metrics(scores, step)
        if isinstance(logger, Tracker):
            logger.log_rows("scores", SCORE_COLUMNS, rows, step)
            for name in evaluations:
                page = folder / "evaluations" / name / "gallery.html"
                if page.is_file():
                    logger.log_page(f"{name}/gallery", page, step)
        logger.save()


@rank_zero_only
def log_weights(loggers: Sequence[Logger], folder: Path) -> None:
    """Send the trained weights to the trackers that are to keep them.

    Args:
        loggers: The loggers of a run.
        folder: The run's `weights/`.
    """
    for logger in loggers:
        if isinstance(logger, Tracker):
            logger.log_weights(folder)


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
    for logger in loggers:
        if isinstance(logger, Tracker):
            logger.close(exit_code)
        elif isinstance(logger, WandbLogger):  # of Lightning's, which a YAML of the user's names
            from visllama.tracking.wandb_tracker import finish

            finish(exit_code)
