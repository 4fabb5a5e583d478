"""The program: `visllama VERB key=value ...`, every verb by Hydra."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import sys
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from visllama import console  # first: it looks at the clock
from visllama.config import checks
from visllama.config.check_groups import check_adapter
from visllama.config.check_loggers import check_secrets
from visllama.config.explain import explain, explain_options
from visllama.config.invocation import invocation, run_folder
from visllama.config.overrides import lists_of
from visllama.config.plain import plain, without_hydra
from visllama.config.replay import Finished, replay, what_is_safe
from visllama.config.run_folder import check_folder, find_folder
from visllama.config.schema import RunConfig, conf_dir, register
from visllama.console import printable
from visllama.errors import ConfigError
from visllama.files import NO_ROOM, WriteFailed
from visllama.machine import preemption

_VERBS = {
    "train": ("visllama.training.verb", "train a stage, judge it, write the run folder"),
    "evaluate": ("visllama.evaluation.verb", "judge weights, or score any system's captions or answers"),
    "caption": ("visllama.inference.verbs", "write captions for pictures"),
    "ask": ("visllama.inference.verbs", "answer questions about pictures"),
    "chat": ("visllama.inference.verbs", "talk with a model about pictures"),
    "export": ("visllama.release.verb", "write weights for other libraries, with a model card"),
    "demo": ("visllama.release.demo.verb", "show weights on a page, with an API, to talk to them"),
    "prepare": ("visllama.prepare.verb", "make shards with an index out of raw data"),
    "inspect": ("visllama.inspect.verb", "show the batches that train would see, or what a trained connector says"),
    "plan": ("visllama.plan.verb", "say what a job costs, before it is queued: memory, time, GPU hours"),
    "report": ("visllama.report.verb", "compare runs: a paired test of two, a table of many"),
    "benchmark": ("visllama.benchmark.verb", "measure what something costs, beside what others do"),
}
"""Each verb's module, and what it does. The module holds a function of the verb's name and, where something can be
tried first, `assemble`; it is imported when the cheap checks have passed."""
_CHECKS: dict[str, Callable[[DictConfig], None]] = {
    "train": checks.check_train,
    "evaluate": checks.check_evaluate,
    "caption": partial(checks.check_inference, verb="caption", needs=["weights=RUN/weights", "images=PATH"]),
    "ask": partial(checks.check_inference, verb="ask", needs=["weights=RUN/weights", "question='TEXT'"]),
    "chat": partial(checks.check_inference, verb="chat", needs=["weights=RUN/weights"]),
    "export": checks.check_export,
    "demo": partial(checks.check_inference, verb="demo", needs=["weights=RUN/weights"]),
    "inspect": checks.check_inspect,
    "plan": checks.check_plan,
    "report": checks.check_report,
    "benchmark": checks.check_benchmark,
}
_ON_RANKS = ("train", "evaluate")
"""The verbs that may start further ranks."""
_LISTS = {"report": ("runs", "evaluations", "rows", "over", "columns")}
"""The keys of a verb that take several values, which may be typed with commas between them."""
_LAUNCHERS = ("launch=", "hydra/launcher=")
_WANTS_TRACEBACK = bool(os.environ.get("HYDRA_FULL_ERROR"))
_WITH_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p")


class Understood(NamedTuple):
    """A configuration that has passed all checks, as plain objects."""

    config: RunConfig
    assembled: object = None
    """The result of the verb's `assemble`; None where the verb has none, or where it only checks."""


_WAITING: list[Understood] = []
"""The configuration that was understood before the run's folder was made, until the job in that folder takes it."""


def understand(verb: str, cfg: DictConfig) -> Understood:
    """Check a configuration, and build what it names as far as that needs neither a weight nor the run's folder.

    Raises:
        ConfigError: Naming the key, the value found, and what to do.
    """
    if verb == "train":
        preemption.configure(cfg.trainer.preempted_exit_code, cfg.trainer.requeue)
    check_secrets(cfg)
    if verb in _CHECKS:  # what `prepare` is given, only its own `assemble` can check: each source has other keys
        _CHECKS[verb](cfg)
    if cfg.get("init_from"):
        from visllama.config.inherit import inherit_model  # here: it imports torch

        inherit_model(cfg)
        check_adapter(cfg)
    config = plain(cfg)
    assemble = getattr(import_module(_VERBS[verb][0]), "assemble", None)
    return Understood(config, assemble(config) if assemble else None)


def work(verb: str, understood: Understood) -> object:
    """Run a verb on a configuration that was understood, and return its result."""
    do = getattr(import_module(_VERBS[verb][0]), verb)
    return do(understood.config) if understood.assembled is None else do(*understood)


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
        if config_name not in _VERBS:
            _end(f"--config-name {config_name}", "a verb chooses its config by itself: leave this out")
        HydraConfig.instance().set_config(config)
        cfg = without_hydra(config)
        if config_name == "train":  # before `understand` does, since torch may be imported first, which takes seconds
            preemption.configure(cfg.trainer.preempted_exit_code, cfg.trainer.requeue)
        try:
            check_single(config)
            _name_folder(config)
            with env_override(config.hydra.job.env_set), console.before_the_log():
                understood = understand(config_name, cfg)
            check_folder(config, cfg, make=not cfg.get("check_only"))
            if cfg.get("check_only"):
                work(config_name, understood)
                sys.exit(0)
            _WAITING.append(understood)
        except Exception as error:  # Hydra would make a warning of it, and go on
            message = without_room(error, config_name) or explain(error, sys.argv[1:], config_name)
            if message is None or _WANTS_TRACEBACK:
                traceback.print_exc()
                sys.exit(1)
            _end(config_name, str(message))


def _name_folder(config: DictConfig) -> None:
    """Write the run's folder into the configuration, as Hydra does when it makes the folder."""
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(find_folder(config))
    HydraConfig.instance().set_config(config)


def check_sweep(config: DictConfig) -> None:
    """Refuse a sweep that several ranks have been started for, that cannot be queued or run, or that holds a key.

    Raises:
        ConfigError: Naming what to type.
    """
    check_secrets(without_hydra(config), config.hydra.overrides.task)
    if not {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS"}.isdisjoint(os.environ):
        from visllama.machine.devices import started_ranks  # here: it imports torch

        started = started_ranks()
        if started and started.num_nodes * started.per_node > 1:
            num_ranks = started.num_nodes * started.per_node
            raise ConfigError(
                f"-m: {started.launcher} has started {num_ranks} ranks, each of which would go through the sweep by "
                f"itself: leave out {started.launcher}, and give trainer.devices= (the ranks of each job are started "
                f"by it), or launch=slurm"
            )
    if config.hydra.runtime.choices.get("hydra/launcher") == "slurm":
        try:
            from visllama.sweep.slurm import use_launcher  # here: it is an extra
        except ModuleNotFoundError as error:
            if error.name != "submitit":
                raise
            raise ConfigError("launch=slurm is an extra, which is not there:  pip install 'visllama[slurm]'") from error

        use_launcher(config.hydra.runtime.choices.get("launch"), config.get("trainer"))
    if config.hydra.runtime.choices.get("hydra/sweeper") == "search":
        _prepare_search(config)


def _prepare_search(config: DictConfig) -> None:
    """Let Hydra ask for the jobs of a search.

    Raises:
        ConfigError: If it is no search of `train`, if a grid is chosen too, or if Optuna is not there.
    """
    choices = config.hydra.runtime.choices
    if config.hydra.job.config_name != "train":
        raise ConfigError(f"search={choices.get('search')}: only train searches: leave it out")
    if choices.get("sweep"):
        raise ConfigError(f"sweep={choices['sweep']} search={choices.get('search')}: a grid or a search: leave one out")
    try:
        from visllama.sweep.search import use_sweeper  # here: it is an extra
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ConfigError("search= is an extra, which is not there:  pip install 'visllama[search]'") from error

    use_sweeper()


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

        trainer = config.trainer
        count_ranks(trainer.num_nodes, trainer.devices, trainer.accelerator)


def _verb(name: str) -> Callable[[], None]:
    """Return the entry point of a verb: compose its config, run it, and end with a message where one helps."""

    def job(cfg: DictConfig) -> object:
        try:
            return work(name, _WAITING.pop() if _WAITING else understand(name, cfg))
        except Exception as raised:
            error = without_room(raised, name, run_folder()) or raised
            if logging.getLogger().handlers:
                logging.getLogger("visllama").exception("failed")
            if invocation().is_of_sweep:
                print(f"this job failed: {error}", file=sys.stderr, flush=True)
                traceback.clear_frames(raised.__traceback__)  # they hold the model, on a GPU that the next job needs
                return error  # the sweep goes on, and its table shows it
            if isinstance(error, ConfigError) and not _WANTS_TRACEBACK:
                _end(name, str(error))
            raise

    def run() -> None:
        if "--version" in sys.argv[1:]:
            _print_version()
            return
        if name == "prepare" and not sys.argv[1:]:
            _end(name, _sources())
        logging.raiseExceptions = False  # a log that cannot be written keeps nobody from training
        if name == "train":
            preemption.listen()
        if name in _ON_RANKS:
            preemption.end_with_parent()
        register()
        job.__name__ = name
        try:
            typed = [_as_hydra_reads(word, name) for word in sys.argv[1:]]
            sys.argv[1:] = options_first(replay(typed, name) if name in _ON_RANKS else typed)
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
            if _WANTS_TRACEBACK:
                raise
            message = without_room(error, name) or explain(error, sys.argv[1:], name)
            if message is None:
                _fail(name, error)
            _end(name, str(message))
        if not console.is_first_rank() or preemption.watched():  # ranks have worked together
            preemption.end_now(0)

    return run


def _as_hydra_reads(word: str, verb: str) -> str:
    """Return an override of a verb with several values as a list, and `evaluation`, a group, as the key of `report`."""
    if verb == "report" and word.startswith("evaluation="):
        word = word.replace("evaluation", "evaluations", 1)
    return lists_of(word, _LISTS.get(verb, ()))


def _fail(verb: str, error: Exception) -> NoReturn:
    """End with the traceback of an error that no message explains, from the verb's own code on, and where its log is.

    HYDRA_FULL_ERROR=1 shows the frames of Hydra too.
    """
    place = error.__traceback__
    own = place
    while place is not None:
        if place.tb_frame.f_code.co_filename == __file__:  # what this file calls last is the verb
            own = place.tb_next or place
        place = place.tb_next
    traceback.print_exception(type(error), error, own)
    has_folder = HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir")
    if has_folder and (run_folder() / "log.txt").is_file():  # what fails between the jobs of a sweep has none
        print(f"visllama {verb}: stopped by this error; {run_folder()}/log.txt has it too", file=sys.stderr, flush=True)
    sys.exit(1)


def _print_version() -> None:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "transformers", "hydra-core"))
    print(f"visllama {version('visllama')} ({libraries}, Python {platform.python_version()})")


def _sources() -> str:
    """Return the sources of `prepare`, each with its command: the second line of a source's YAML tells both."""
    lines = []
    for path in sorted((conf_dir() / "source").glob("*.yaml")):
        what, _, command = path.read_text(encoding="utf-8").splitlines()[1].lstrip("# ").partition("   ")
        lines.append(f"  {command.strip()}\n      {what}")
    return "\n".join(["choose a source:", *lines, "  visllama prepare source=NAME --help  shows the keys of one"])


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
    if verb == "--version":
        _print_version()
        return
    if verb not in _VERBS:
        verbs = [f"  {name:10} {text}" for name, (_, text) in _VERBS.items()]
        print("visllama VERB [key=value ...]\n", *verbs, sep="\n")
        print("\nvisllama VERB --help shows a verb's keys.")
        sys.exit(0 if verb in ("--help", "-h") else 2)
    sys.argv = [f"visllama {verb}", *sys.argv[2:]]
    _verb(verb)()
