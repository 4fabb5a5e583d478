"""Build, feed and close the loggers of a run: that of `metrics.csv`, and those that the configuration names."""

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
    """Build all loggers of a training run, and prepare them to continue from the step of a checkpoint.

    On the first rank the rows of an earlier `metrics.csv` in `folder` are read; those from `first_step` on are dropped.

    Args:
        nodes: The `logger` group of the configuration: under each name a mapping with `_target_` and its arguments.
        plugins: Names of the user's Python packages, which `_target_` may also name classes of.
        folder: The run's folder, in which `metrics.csv` is written.
        first_step: The step of the checkpoint that the run resumes from; 0 for a new run.

    Returns:
        The logger of `metrics.csv`, then those of `nodes` in their order.

    Raises:
        ConfigError: If a `_target_` does not exist, or is one that a configuration may not name.
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
    """Build the loggers that the configuration names, without the one of `metrics.csv`.

    Args:
        nodes: The `logger` group of the configuration, with `${...}` resolved: under each name a mapping with
            `_target_` and its arguments.
        plugins: Names of the user's Python packages, which `_target_` may also name classes of.

    Returns:
        One logger for each entry of `nodes`, in their order.

    Raises:
        ConfigError: If a `_target_` does not exist, or is one that a configuration may not name.
    """
    return [build(node, plugins) for node in nodes.values()]


@rank_zero_only
def _continue_trackers(trackers: Sequence[Tracker], folder: Path, first_step: int) -> None:
    """Make trackers continue a stopped run, and tell them which figures they hold already, so that none comes twice."""
    logged = logged_names(folder, first_step)
    for tracker in trackers:
        tracker.go_on(first_step, logged)


@rank_zero_only
def log_pictures(loggers: Sequence[Logger], pictures: Sequence[Picture], step: int) -> None:
    """Send validation pictures, with the texts that the model wrote about them, to each `Tracker` among some loggers.

    Only the first rank sends. Other loggers are passed over, and so is a tracker that was given this step's `val/loss`
    before the run was stopped.

    Args:
        loggers: The loggers of a run.
        pictures: The validation records with the model's texts.
        step: The optimizer step of the validation, under which its `val/loss` is logged.
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
    """Send the final scores of a run to its loggers; nothing is sent if there are none.

    Every logger except that of `metrics.csv` gets the scores by name (`flat_scores`). A `Tracker` also gets them as
    a table (`score_rows`), and the gallery of each evaluation that has one. Only the first rank sends.

    Args:
        loggers: The loggers of a run.
        evaluations: The content of `metrics.json` at its key `evaluations`, by the names of the evaluations.
        folder: The run's folder; galleries are read from `evaluations/NAME/gallery.html` inside it.
        step: The last optimizer step of the run.
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
    """Send a tracker the gallery (an HTML page of pictures and texts) of each evaluation that has written one."""
    for name in names:
        page = folder / "evaluations" / name / "gallery.html"
        if page.is_file():
            tracker.log_page(f"{name}/gallery", page, step)


@rank_zero_only
def log_weights(loggers: Sequence[Logger], folder: Path) -> None:
    """Pass the folder of trained weights to each `Tracker`, which keeps a copy if its `log_weights` option is on.

    Args:
        loggers: The loggers of a run; others than trackers are passed over.
        folder: The run's `weights/` folder.
    """
    for logger in loggers:
        if isinstance(logger, Tracker):
            logger.log_weights(folder)


@contextmanager
def closing(loggers: Sequence[Logger]) -> Generator[None, None, None]:
    """Close loggers at the end of a `with` block that holds a run, however the block ends.

    Trackers show the run as well ended (exit code 0) if the block ends normally, and as failed (1) if it raises. After
    a preemption (the cluster takes the machine back) they show `preemption.exit_code()`. Exceptions pass through.

    Args:
        loggers: The loggers to close, of `build_loggers` or `build_trackers`.
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
    """End the run that each tracker, and Lightning's own `WandbLogger`, holds open; other loggers are left alone.

    Without this call, the next training in the same process, such as the next job of a sweep, would write into the
    same run of wandb. Only the first rank does anything.

    Args:
        loggers: The loggers of a run.
        exit_code: The exit code that trackers show for the run; 0 means that it has ended well.
    """
    for logger in loggers:
        if isinstance(logger, Tracker):
            logger.close(exit_code)
        elif isinstance(logger, WandbLogger):
            # Lightning's own logger, where a YAML of the user's names it. It leaves wandb's run open.
            from visllama.tracking.wandb_tracker import finish

            finish(exit_code)
