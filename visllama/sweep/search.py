"""A search: a sweep whose values Optuna chooses, a batch of jobs after the other, started by any of Hydra's launchers.

A trial is one choice of values, and is run by one job.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write

from visllama.config.checks import check_train
from visllama.config.command import write_command
from visllama.config.explain import explain
from visllama.config.objective import Objective, find_objective
from visllama.config.overrides import config_dir_options, key_of, override
from visllama.config.plain import without_hydra
from visllama.config.ranges import RANGES, Range, job_words, searched_ranges
from visllama.config.replay_search import JOURNAL
from visllama.config.search_settings import SearchSettings, read_settings
from visllama.config.selection import MULTIRUN
from visllama.console import say
from visllama.errors import ConfigError
from visllama.files import locked, read_regular, write_whole
from visllama.sweep.jobs import PRUNE, compose_job
from visllama.sweep.table import SweepTable
from visllama.sweep.trials import MAX_STARTS, Trials

SWEEPER = "hydra_plugins.visllama.SearchSweeper"
"""The class that `conf/hydra/sweeper/search.yaml` names: Hydra takes sweepers from a package of its own name alone."""
_MULTIRUN = "hydra.mode=MULTIRUN"
_IN_QUEUE = 4
"""The number of trials that are asked for at once where they run side by side."""


def use_sweeper() -> None:
    """Register `SearchSweeper` with Hydra, in this process, under the name that `hydra/sweeper=search` asks for."""
    Plugins.instance().class_name_to_class[SWEEPER] = SearchSweeper


class SearchSweeper(Sweeper):
    """Hydra's sweeper of a search: ask Optuna for values, run a job for each, and tell Optuna the results.

    Hydra makes it, and calls `setup` and then `sweep`.
    """

    hydra_context: HydraContext  # pyrefly: ignore[bad-override-mutable-attribute]  optional in Hydra: `setup` sets it
    config: DictConfig  # pyrefly: ignore[bad-override-mutable-attribute]  optional in Hydra: `setup` sets it
    launcher: Launcher  # pyrefly: ignore[bad-override-mutable-attribute]  optional in Hydra: `setup` sets it

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the arguments, and make the launcher that runs the jobs; Hydra calls this method before `sweep`.

        Args:
            hydra_context: The context of Hydra; a `SweepTable` has to be one of its callbacks.
            task_function: The function that a job calls with its configuration.
            config: The whole configuration of the sweep. If the override `hydra.mode=MULTIRUN` is missing from
                `hydra.overrides.hydra`, it is added in place.

        Raises:
            StopIteration: If no `SweepTable` is among the callbacks.
        """
        self.hydra_context = hydra_context
        self.config = _in_multirun(config)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=self.config
        )
        callbacks = hydra_context.callbacks.callbacks
        self.table = next(callback for callback in callbacks if isinstance(callback, SweepTable))

    def sweep(self, arguments: list[str]) -> None:
        """Check the search, run the trials that its folder does not hold yet, and set `SweepTable.importances`.

        With `check_only=true` no trial runs. A trial that was killed in an earlier start is run again, unless its
        values have been started three times: then it counts as failed.

        Args:
            arguments: The overrides that were typed for the sweep, in the form "key=value".

        Raises:
            ConfigError: If the settings of the search are wrong, nothing is measured that could rank trials, a job
                would refuse the values at an end of a range, or another process runs this search. No job has run then.
        """
        settings = read_settings(self.config)
        ranges = searched_ranges(arguments, settings.ranges)
        shared = job_words(arguments)
        objective = self._check(shared, ranges, settings)

        if self.config.check_only:
            keys = ", ".join(key_range.key for key_range in ranges)
            say(f"All checks passed: {settings.n_trials} trials of {keys}; none runs.")
            return

        folder = Path(self.config.hydra.sweep.dir).absolute()
        with locked(folder / ".search.lock", f"{folder}: another process goes on with this search: wait for it"):
            # From these two files a stopped search is composed again.
            write_whole(folder / MULTIRUN, OmegaConf.to_yaml(self.config))
            write_command(folder, _launcher_overrides())
            trials = Trials(
                folder / JOURNAL,
                ranges,
                objective,
                sampler=settings.sampler,
                num_startup=settings.n_startup_trials,
                seed=self.config.seed,
            )
            self._go_on(trials, shared, folder)
            self._run(trials, shared, folder, settings)
            self.table.importances = trials.importances()

    def _go_on(self, trials: Trials, shared: Sequence[str], folder: Path) -> None:
        """Bring the rows of earlier trials into the table; trials that were killed are run again."""
        self.table.compose = self._compose_row
        for (number, words), row in trials.rows():
            # The search may have been moved, or be somebody else's, whose journal chooses neither words nor a folder.
            old_folder = os.path.normpath(row["folder"])
            name = Path(old_folder).name
            row["job"] = number
            row["overrides"] = [*shared, *words]
            row["folder"] = str(folder / name)
            self.table.rows.append(row)

        for number, words in trials.stopped():
            job = self._compose([*shared, *words], number)
            job_folder = Path(job.hydra.runtime.output_dir)
            result = _read_result(job_folder)
            if result is None and trials.num_starts(number) < MAX_STARTS:
                trials.run_again(number)
                typed = " ".join(words)
                say(f"Trial {number} was stopped, and is run again: {typed}")
                continue

            # A job with a result has ended, but the search was killed before it could tell the trial.
            outcome = result
            if outcome is None:
                outcome = ConfigError(f"its values were stopped {MAX_STARTS} times, and are not tried again")
            self.table.add(job.hydra, without_hydra(job), outcome)
            trials.tell(number, self.table.rows[-1])

        num_trials = len(trials.rows())
        if num_trials > 0:
            say(f"Going on with {folder}: {num_trials} trials are there")

    def _run(self, trials: Trials, shared: Sequence[str], folder: Path, settings: SearchSettings) -> None:
        """Ask for trials, run their jobs, and tell the trials the results, until all have ended."""
        # The basic launcher runs one job after the other: each trial can learn from the one before it.
        launcher_name = self.config.hydra.runtime.choices.get("hydra/launcher", "basic")
        default_batch = 1 if launcher_name == "basic" else _IN_QUEUE
        batch = settings.batch or default_batch

        options = config_dir_options()
        command = shlex.join([*options, override("resume", folder)])
        say(f"Stopped, this search goes on by:  visllama train {command}")

        num_missing = settings.n_trials - len(trials.rows())
        while num_missing > 0:
            new_trials = trials.ask(min(batch, num_missing))
            jobs = []
            for number, words in new_trials:
                job = [*shared, *words]
                if settings.prune:
                    job += _prune_words(folder, number)
                jobs.append(job)
            first_number = new_trials[0].number
            self.launcher.launch(jobs, initial_job_idx=first_number)

            rows = {row["job"]: row for row in self.table.rows}
            for number, _ in new_trials:
                trials.tell(number, rows[number])
            num_missing = settings.n_trials - len(trials.rows())

    def _check(self, shared: Sequence[str], ranges: Sequence[Range], settings: SearchSettings) -> Objective:
        """Check the jobs at each end of each range, and return what the search is for.

        Raises:
            ConfigError: If a job would refuse its values; the message names the key of the range.
        """
        before = HydraConfig.instance().cfg
        try:
            cfg = self._compose_checked(shared, "")
            objective = find_objective(cfg)
            if objective is None:
                raise ConfigError(
                    "search=: nothing is measured that trials could be ranked by: give evaluation= or "
                    "trainer.val_check_interval="
                )
            if settings.prune and not cfg.trainer.val_check_interval:
                raise ConfigError(
                    "search.prune=true: trainer.val_check_interval=null validates nothing: give it a share, or "
                    "search.prune=false"
                )

            for key_range in ranges:
                for word in key_range.ends:
                    self._compose_checked([*shared, word], f"{RANGES}.{key_range.key}: ")
        finally:
            HydraConfig.instance().cfg = before
        return objective

    def _compose_checked(self, words: Sequence[str], prefix: str) -> DictConfig:
        """Return a job's configuration, without Hydra's part, after the checks of `train`.

        Raises:
            ConfigError: If a check fails; the message begins with the prefix.
        """
        try:
            cfg = without_hydra(self._compose(words, 0))
            check_train(cfg)
        except Exception as error:
            message = explain(error, words, "train")
            if message is None:
                raise
            raise ConfigError(f"{prefix}{message}") from error
        return cfg

    def _compose_row(self, row: Mapping[str, Any]) -> DictConfig:
        """Return the configuration of an earlier job from its row in the table."""
        config = self._compose(row["overrides"], row["job"])
        return without_hydra(config)

    def _compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        """Return a job's configuration, and leave Hydra's current one as it is."""
        before = HydraConfig.instance().cfg
        try:
            return compose_job(self.hydra_context, self.config, overrides, number)
        finally:
            HydraConfig.instance().cfg = before


def _in_multirun(config: DictConfig) -> DictConfig:
    """Return the configuration of a search with the mode among Hydra's overrides, from which each job is composed.

    Without `-m` the YAML of the search chooses the mode, and no job has that YAML.
    """
    words = config.hydra.overrides.hydra
    if _MULTIRUN not in words:
        with read_write(config.hydra):
            words.append(_MULTIRUN)
    return config


def _prune_words(folder: Path, number: int) -> list[str]:
    """Return the overrides by which a job reports its validation losses to the trial of this number."""
    return [
        f"{PRUNE}._target_=visllama.training.callbacks.prune.Prune",
        override(f"{PRUNE}.journal", folder / JOURNAL),
        f"{PRUNE}.trial={number}",
    ]


def _launcher_overrides() -> list[str]:
    """Return the overrides of Hydra's launcher, which a search needs again when it goes on."""
    typed = list(HydraConfig.get().overrides.hydra)
    return [word for word in typed if key_of(word).startswith("hydra.launcher")]


def _read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a job that has ended; None if it has not."""
    try:
        # The folder may be somebody else's: links and huge files are refused.
        result = json.loads(read_regular(folder / "metrics.json", 2**28))
    except (OSError, ValueError):
        return None

    # Metrics without it are those of a job that has not ended.
    return result if "provenance" in result else None
