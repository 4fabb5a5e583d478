"""The program: `visllama VERB key=value ...`, every verb by Hydra."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError

from visllama import console  # first: it looks at the clock
from visllama.config import checks
from visllama.config.explain import explain, explain_options
from visllama.config.replay import FREE, Finished, differing_keys, read_config, replay, what_is_safe
from visllama.config.schema import conf_dir, register
from visllama.console import printable
from visllama.errors import ConfigError
from visllama.files import NO_ROOM, WriteFailed
from visllama.machine import preemption

_VERBS = {
    "train": ("visllama.training.verb", "train a stage, judge it, write the run folder"),
    "evaluate": ("visllama.evaluation.verb", "judge weights, or score any system's captions or answers"),
    "caption": ("visllama.inference.verb", "write captions for pictures"),
    "prepare": ("visllama.prepare.verb", "make shards with an index out of raw data"),
    "inspect": ("visllama.inspect.verb", "show the batches that train would see, as a person reads them"),
    "plan": ("visllama.plan.verb", "say what a job costs, before it is queued: memory, time, GPU hours"),
    "benchmark": ("visllama.benchmark.verb", "measure what something costs, beside what others do"),
}
"""Each verb's module, which holds a function of its name and is imported only to do the work; what it does."""
_CHECKS = {
    "train": checks.check_train,
    "evaluate": checks.check_evaluate,
    "caption": checks.check_caption,
    "prepare": lambda cfg: import_module("visllama.prepare.keys").check_prepare(cfg),  # no other verb needs it
    "inspect": checks.check_inspect,
    "plan": checks.check_plan,
    "benchmark": checks.check_benchmark,
}
_ON_RANKS = ("train", "evaluate")
"""The verbs that may start further ranks."""
_LAUNCHERS = ("launch=", "hydra/launcher=")
_FIRST_FILES_BYTES = 2**17
"""More than what Hydra and we write at the start of a run."""
_WITH_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p")


def _work(verb: str, cfg: DictConfig) -> object:
    return getattr(import_module(_VERBS[verb][0]), verb)(cfg)


def _end(verb: str, message: str) -> None:
    """End with a message instead of a traceback: the user can mend it (HYDRA_FULL_ERROR=1 shows the traceback)."""
    print(f"visllama {verb}: {printable(message)}", file=sys.stderr, flush=True)
    sys.exit(2)


class BeforeTheFolder(Callback):
    """Hydra's callback: check the config before a run folder is made, so that a wrong one leaves nothing behind."""

    def on_multirun_start(self, config: DictConfig, config_name: str, **_: Any) -> None:
        HydraConfig.instance().set_config(config)  # the sweep's folder may be named after what was chosen
        try:
            check_sweep(config)
        except ConfigError as error:
            _end(config_name, str(error))
        except Exception:
            traceback.print_exc()
            sys.exit(1)

    def on_run_start(self, config: DictConfig, config_name: str, **_: Any) -> None:
        HydraConfig.instance().set_config(config)
        cfg = config.copy()
        with open_dict(cfg):
            del cfg["hydra"]
        if config_name == "train":
            preemption.configure(cfg.trainer.preempted_exit_code, cfg.trainer.requeue)
        try:
            _CHECKS.get(config_name, lambda cfg: None)(cfg)
            check_single(config)
            if cfg.get("check_only"):
                _work(config_name, cfg)
                sys.exit(0)
            _check_folder(config, cfg)
        except ConfigError as error:
            _end(config_name, str(error))
        except Exception:  # Hydra would make a warning of it, and go on
            traceback.print_exc()
            sys.exit(1)


def check_sweep(config: DictConfig) -> None:
    """Refuse a sweep that several ranks have been started for, or that cannot be queued.

    Raises:
        ConfigError: Naming what to type.
    """
    if not {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS"}.isdisjoint(os.environ):
        from visllama.machine.devices import started_ranks  # here: it imports torch

        who, nodes, per_node = started_ranks() or ("", 1, 1)
        if nodes * per_node > 1:
            raise ConfigError(
                f"-m: {who} has started {nodes * per_node} ranks, each of which would go through the sweep by itself: "
                f"leave out {who}, and give trainer.devices= (the ranks of each job are started by it), or launch=slurm"
            )
    if config.hydra.runtime.choices.get("hydra/launcher") == "slurm":
        try:
            from visllama.sweep.slurm import use_launcher  # here: it is an extra
        except ModuleNotFoundError as error:
            if error.name != "submitit":
                raise
            raise ConfigError("launch=slurm is an extra, which is not there:  pip install 'visllama[slurm]'") from error

        use_launcher(config.hydra.runtime.choices.get("launch"), config.get("trainer"))


def check_single(config: DictConfig) -> None:
    """Refuse a single run that names a launcher of sweeps, or other numbers of ranks than were started.

    Raises:
        ConfigError: Naming what to type.
    """
    choices, typed = config.hydra.runtime.choices, list(config.hydra.overrides.task)
    is_replayed = config.get("resume") or "LOCAL_RANK" in os.environ  # as a sweep's job was written down
    if choices.get("hydra/launcher", "basic") != "basic" and not is_replayed:
        chosen = [word for word in [*typed, *config.hydra.overrides.hydra] if word.startswith(_LAUNCHERS)]
        chosen = chosen or [f"hydra/launcher={choices['hydra/launcher']}"]
        others = [word for word in typed if word not in chosen]
        raise ConfigError(
            f"{' '.join(chosen)} starts the jobs of a sweep; without -m this run would be on this very machine, in "
            f"silence. A sweep, also of one:  -m {shlex.join([*chosen, *others])}  or leave out {' '.join(chosen)}"
        )
    if not {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS"}.isdisjoint(os.environ) and "trainer" in config:
        from visllama.machine.devices import count_ranks  # here: it imports torch

        count_ranks(config.trainer)


def _check_folder(config: DictConfig, cfg: DictConfig) -> None:
    """Refuse a run folder that cannot be written, or that holds a run of another config."""
    try:
        folder = Path(config.hydra.run.dir)
    except InterpolationResolutionError as error:
        raise ConfigError(f"hydra.run.dir: {str(error).splitlines()[0]}") from error
    if config.hydra.output_subdir is None:
        return  # a verb that writes no folder, or a rank of a run whose first rank has looked
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".writable.{os.getpid()}"
        try:
            trial.write_bytes(bytes(_FIRST_FILES_BYTES))
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"hydra.run.dir={folder}: cannot be written ({error.strerror}): give another name=, paths.outputs= or "
            f"hydra.run.dir="
        ) from error
    written = folder / "config.yaml"
    if written.is_file():
        before, now = _flat(read_config(written)), _flat(OmegaConf.to_container(cfg))
        differing = differing_keys(before, now) if cfg.get("resume") else [k for k in now if _differs(before, now, k)]
        told = printable(", ".join(f"{key}={before.get(key)} there, {now[key]} now" for key in sorted(differing)[:3]))
        if differing and cfg.get("resume"):
            raise ConfigError(
                f"resume={folder}: {told}: a run goes on as it began; {', '.join(FREE[:-2])} may differ, and with "
                f"data.allow_reorder=true seed and data.* too"
            )
        if differing:
            raise ConfigError(
                f"hydra.run.dir={folder}: holds a run of another config ({told}): give another name= or hydra.run.dir="
            )


def _differs(before: dict, now: dict, key: str) -> bool:
    return "${" not in str(now[key]) and before.get(key) != now[key]  # what is not resolved holds the folder's name


def _flat(node: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {key: v for name, value in node.items() for key, v in _flat(value, f"{prefix}.{name}".lstrip(".")).items()}


def _verb(name: str) -> Callable[[], None]:
    """Give the entry point of a verb: compose its config, run it, and end with a message where one helps."""
    wants_traceback = bool(os.environ.get("HYDRA_FULL_ERROR"))

    def job(cfg: DictConfig) -> object:
        try:
            return _work(name, cfg)
        except Exception as raised:
            error = without_room(raised, name, Path(HydraConfig.get().runtime.output_dir)) or raised
            if logging.getLogger().handlers:
                logging.getLogger("visllama").exception("failed")
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                print(f"this job failed: {error}", file=sys.stderr, flush=True)
                return error  # the sweep goes on, and its table shows it
            if isinstance(error, ConfigError) and not wants_traceback:
                _end(name, str(error))
            raise

    def run() -> None:
        logging.raiseExceptions = False  # a log that cannot be written keeps nobody from training
        if name == "train":
            preemption.listen()
        if name in _ON_RANKS:
            preemption.end_with_parent()
        register()
        job.__name__ = name
        try:
            sys.argv[1:] = options_first(replay(sys.argv[1:]) if name == "train" else sys.argv[1:])
        except ConfigError as error:
            _end(name, str(error))
        except Finished as finished:
            console.say(str(finished))
            return
        meant = explain_options(sys.argv[1:], name)
        if meant is not None:
            _end(name, meant)
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands its errors on, and we say what to type instead
        try:
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(job)()
        except Exception as error:
            if wants_traceback:
                raise
            message = without_room(error, name) or explain(error, sys.argv[1:], name)
            if message is None:
                raise
            _end(name, str(message))

    return run


def without_room(error: Exception, verb: str, folder: Path | None = None) -> ConfigError | None:
    """Return what a user is told where a file could not be written; None for any other error.

    Args:
        error: What was raised: `WriteFailed`, or a library's own `OSError` of a full disk.
        verb: The verb that was at work.
        folder: The run's folder; None where none was begun.
    """
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        error = WriteFailed(error.filename or folder or "the run's folder", error.strerror)
    if not isinstance(error, WriteFailed):
        return None
    if verb != "train" or folder is None:
        return ConfigError(f"{error}: nothing of it is there: mend that, and type the same again")
    return ConfigError(f"{error}: {what_is_safe(folder)}")


def options_first(arguments: list[str]) -> list[str]:
    """Move overrides behind the options: Hydra's parser fails where they stand on both sides (`a=1 -m b=2`)."""
    options, overrides = [], []
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        is_override = not argument.startswith("-") and ("=" in argument or argument.startswith("~"))
        (overrides if is_override and previous not in _WITH_VALUE else options).append(argument)
    return options + overrides


train, evaluate, caption, prepare, benchmark = (
    _verb(name) for name in ("train", "evaluate", "caption", "prepare", "benchmark")
)


def main() -> None:
    """Run the verb that the command line names first."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb not in _VERBS:
        verbs = [f"  {name:10} {text}" for name, (_, text) in _VERBS.items()]
        print("visllama VERB [key=value ...]\n", *verbs, sep="\n")
        print("\nvisllama VERB --help shows a verb's keys.")
        sys.exit(0 if verb in ("--help", "-h") else 2)
    sys.argv = [f"visllama {verb}", *sys.argv[2:]]
    _verb(verb)()
