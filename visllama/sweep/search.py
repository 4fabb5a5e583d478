"""A search: jobs whose values Optuna asks for, one batch after the other, by any of the launchers."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
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
"""What `conf/hydra/sweeper/search.yaml` names: Hydra takes sweepers from a package of its own name alone."""
_MULTIRUN = "hydra.mode=MULTIRUN"
_IN_QUEUE = 4
"""Trials asked for at once where they run side by side."""


def use_sweeper() -> None:
    """Let Hydra ask for jobs by `SearchSweeper`."""
    Plugins.instance().class_name_to_class[SWEEPER] = SearchSweeper


class SearchSweeper(Sweeper):
    """Hydra's sweeper: ask Optuna for trials, launch them as jobs, and tell it what their rows in the table hold."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.config = _in_multirun(config)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=self.config
        )
        self.table = next(each for each in hydra_context.callbacks.callbacks if isinstance(each, SweepTable))

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that are missing.

        Raises:
            ConfigError: Before anything runs, if the search is wrong or another process goes on with it.
        """
        settings = read_settings(self.config)
        ranges = searched_ranges(arguments, settings.ranges)
        shared = job_words(arguments)
        objective = self._check(shared, ranges, settings)
        if self.config.check_only:
            say(
                f"All checks passed: {settings.n_trials} trials of {', '.join(each.key for each in ranges)}; none runs."
            )
            return

        folder = Path(self.config.hydra.sweep.dir).absolute()
        with locked(folder / ".search.lock", f"{folder}: another process goes on with this search: wait for it"):
            write_whole(folder / MULTIRUN, OmegaConf.to_yaml(self.config))
            write_command(folder, _of_hydra())
            trials = Trials(
                folder / JOURNAL, ranges, objective, settings.sampler, settings.n_startup_trials, self.config.seed
            )
            self._go_on(trials, shared, folder)
            self._run(trials, shared, folder, settings)
            self.table.importances = trials.importances()

    def _go_on(self, trials: Trials, shared: Sequence[str], folder: Path) -> None:
        """Bring the rows of earlier trials into the table; those that were killed are run again."""
        self.table.compose = lambda row: without_hydra(self._compose(row["overrides"], row["job"]))
        for (number, words), row in trials.rows():
            # The search may have been moved, or be somebody else's, whose journal chooses neither words nor a folder.
            name = Path(os.path.normpath(row["folder"])).name
            row |= {"job": number, "overrides": [*shared, *words], "folder": str(folder / name)}
            self.table.rows.append(row)
        for number, words in trials.stopped():
            job = self._compose([*shared, *words], number)
            result = _read_result(Path(job.hydra.runtime.output_dir))
            if result is None and trials.num_starts(number) < MAX_STARTS:
                trials.run_again(number)
                say(f"Trial {number} was stopped, and is run again: {' '.join(words)}")
                continue
            if result is None:
                result = ConfigError(f"its values were stopped {MAX_STARTS} times, and are not tried again")
            # Otherwise the job has ended, and nobody was there to see it.
            self.table.add(job.hydra, without_hydra(job), result)
            trials.tell(number, self.table.rows[-1])
        if trials.rows():
            say(f"Going on with {folder}: {len(trials.rows())} trials are there")

    def _run(self, trials: Trials, shared: Sequence[str], folder: Path, settings: SearchSettings) -> None:
        """Ask for trials, run and tell them, until all have ended."""
        in_queue = self.config.hydra.runtime.choices.get("hydra/launcher", "basic") != "basic"
        batch = settings.batch or (_IN_QUEUE if in_queue else 1)
        say(f"Stopped, this search goes on by:  visllama train {shlex.join([*config_dir_options(), _resume(folder)])}")
        while len(trials.rows()) < settings.n_trials:
            missing = settings.n_trials - len(trials.rows())
            asked = trials.ask(min(batch, missing))
            jobs = []
            for number, words in asked:
                reporting = _prune_words(folder, number) if settings.prune else []
                jobs.append([*shared, *words, *reporting])
            self.launcher.launch(jobs, initial_job_idx=asked[0].number)
            rows = {row["job"]: row for row in self.table.rows}
            for number, _ in asked:
                trials.tell(number, rows[number])

    def _check(self, shared: Sequence[str], ranges: Sequence[Range], settings: SearchSettings) -> Objective:
        """Check the jobs at each end of each range, and return what the search is for.

        Raises:
            ConfigError: Naming the key, and what a job would have refused.
        """
        before = HydraConfig.instance().cfg
        try:
            cfg = self._checked(shared, "")
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
            for found in ranges:
                for word in found.ends:
                    self._checked([*shared, word], f"{RANGES}.{found.key}: ")
        finally:
            HydraConfig.instance().cfg = before
        return objective

    def _checked(self, words: Sequence[str], key: str) -> DictConfig:
        """Return a job's configuration that has passed the checks; an error begins with the key."""
        try:
            cfg = without_hydra(self._compose(words, 0))
            check_train(cfg)
        except Exception as error:
            message = explain(error, words, "train")
            if message is None:
                raise
            raise ConfigError(f"{key}{message}") from error
        return cfg

    def _compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        before = HydraConfig.instance().cfg
        try:
            return compose_job(self.hydra_context, self.config, overrides, number)
        finally:
            HydraConfig.instance().cfg = before


def _in_multirun(config: DictConfig) -> DictConfig:
    """Return the configuration of a search with the mode among Hydra's overrides, from which each job is composed.

    Without `-m` it is the YAML of the search that chooses the mode, and no job has that.
    """
    words = config.hydra.overrides.hydra
    if _MULTIRUN not in words:
        with read_write(config.hydra):
            words.append(_MULTIRUN)
    return config


def _prune_words(folder: Path, number: int) -> list[str]:
    """Return the overrides by which a job reports to its trial."""
    return [
        f"{PRUNE}._target_=visllama.training.callbacks.prune.Prune",
        override(f"{PRUNE}.journal", folder / JOURNAL),
        f"{PRUNE}.trial={number}",
    ]


def _resume(folder: Path) -> str:
    return override("resume", folder)


def _of_hydra() -> list[str]:
    """Return the overrides of Hydra's own keys that a search needs again, as those of its launcher."""
    typed = list(HydraConfig.get().overrides.hydra)
    return [word for word in typed if key_of(word).startswith("hydra.launcher")]


def _read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a job that has ended; None of one that has not."""
    try:
        result = json.loads(read_regular(folder / "metrics.json", 2**28))
    except (OSError, ValueError):
        return None
    return result if "provenance" in result else None
