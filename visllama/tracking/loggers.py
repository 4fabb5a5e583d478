"""The loggers of a run: `metrics.csv`, and the trackers and other loggers that the configuration names."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
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

    # Before `keep_metrics`, which drops the rows that say what the trackers were given.
    if first_step and trackers:
        _continue_trackers(trackers, folder, first_step)

    # Each row is written at once, so that a killed run keeps its rows.
    table = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)
    rank_zero_only(keep_metrics)(table, folder, first_step)
    return [table, *others]


def build_trackers(nodes: Mapping[str, Mapping], plugins: Sequence[str]) -> list[Logger]:
    """Build the loggers that the configuration names.

    Args:
        nodes: The `logger` group of the configuration, resolved.
        plugins: The user's packages.
    """
    return [build(node, plugins) for node in nodes.values()]


@rank_zero_only
def _continue_trackers(trackers: Sequence[Tracker], folder: Path, first_step: int) -> None:
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
        if not isinstance(logger, Tracker):
            continue

        # A tracker that has the validation's loss from before the run was stopped has its pictures too.
        is_repeated = "val/loss" in logger.logged.get(step, ())
        if not is_repeated:
            logger.log_pictures("val/pictures", pictures, step)


@rank_zero_only
def log_results(loggers: Sequence[Logger], evaluations: Mapping[str, Mapping], folder: Path, step: int) -> None:
    """Send the scores of a run, those of its controls, and its galleries to its loggers.

    The run's folder holds all of them as well.

    Args:
        loggers: The loggers of a run. `metrics.csv` has a row for each step, and takes no scores.
        evaluations: The scores, as `metrics.json` has them below `evaluations`.
        folder: The run's folder.
        step: The last step of the run.
    """
    scores = flat_scores(evaluations)
    if not scores:
        return

    rows = score_rows(evaluations)
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            continue

        logger.log_metrics(scores, step)
        if isinstance(logger, Tracker):
            logger.log_rows("scores", SCORE_COLUMNS, rows, step)
            _log_galleries(logger, list(evaluations), folder, step)
        logger.save()


def _log_galleries(tracker: Tracker, names: Sequence[str], folder: Path, step: int) -> None:
    """Send the galleries of a run's evaluations to a tracker, as far as there are any."""
    for name in names:
        page = folder / "evaluations" / name / "gallery.html"
        if page.is_file():
            tracker.log_page(f"{name}/gallery", page, step)


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
def closing(loggers: Sequence[Logger]) -> Generator[None, None, None]:
    """Close the loggers when the run ends, in whatever way it does, also where its process leaves at once.

    Args:
        loggers: The loggers of `build_loggers`.
    """
    # A preempted process may leave without unwinding, and would skip `finally`.
    preemption.before_leaving(lambda: close_loggers(loggers, preemption.exit_code()))

    # Any end but a good one or a preemption shows as an error.
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
    """End the runs of all trackers.

    A run of wandb outlives a training, and the next job of a sweep would write into the same one.

    Args:
        loggers: The loggers of `build_loggers`.
        exit_code: The code that the tracker shows for the run; 0 where it has ended well.
    """
    for logger in loggers:
        if isinstance(logger, Tracker):
            logger.close(exit_code)
        elif isinstance(logger, WandbLogger):
            # Lightning's own logger, where a YAML of the user's names it. It leaves wandb's run open.
            from visllama.tracking.wandb_tracker import finish

            finish(exit_code)
