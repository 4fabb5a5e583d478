"""Run the program `visllama VERB key=value ...`: check the configuration that Hydra composes, then run the verb.

A verb is the program's first argument (`train`, `evaluate`, ...). Its module holds a function of the same name.
"""

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
"""The module of each verb, and what the verb does. The module holds a function of the verb's name and, for some verbs,
`assemble`, which builds what the verb needs before the run's folder is made. It is imported when the cheap checks have
passed."""
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
_STARTERS = {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS"}
"""Environment variables by which torchrun and srun tell a process that it is one of their ranks."""
_WANTS_TRACEBACK = bool(os.environ.get("HYDRA_FULL_ERROR"))
# The options of Hydra that are followed by a value.
_WITH_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p")


class Understood(NamedTuple):
    """A configuration that has passed all checks, with the object that the verb's `assemble` has built from it.

    Attributes:
        config: The configuration as plain objects (dataclasses, lists, dictionaries), without OmegaConf.
        assembled: The result of the verb's `assemble`; None where the verb has none, or where its `assemble` returns
            nothing.
    """

    config: RunConfig
    assembled: object = None


_WAITING: list[Understood] = []
"""The configuration that was understood before the run's folder was made, until the job in that folder takes it."""


def understand(verb: str, cfg: DictConfig) -> Understood:
    """Check a verb's configuration, call the verb's `assemble` if it has one, and return both results for `work`.

    Args:
        verb: The name of the verb.
        cfg: The configuration as Hydra has composed it, without the key `hydra`. Where `init_from` is set, its `model`
            is changed in place to the model of those weights.

    Raises:
        ConfigError: If the configuration is wrong. The message names the key, the value found, and what to do.
    """
    if verb == "train":
        preemption.configure(cfg.trainer.preempted_exit_code, cfg.trainer.requeue)

    check_secrets(cfg)
    # `prepare` has no check here: each source has other keys, which only its own `assemble` knows.
    if verb in _CHECKS:
        _CHECKS[verb](cfg)
    if cfg.get("init_from"):
        # Imported here, because it imports torch, which takes seconds.
        from visllama.config.inherit import inherit_model

        inherit_model(cfg)
        check_adapter(cfg)

    config = plain(cfg)
    module_name, _ = _VERBS[verb]
    assemble = getattr(import_module(module_name), "assemble", None)
    if assemble is None:
        return Understood(config)
    return Understood(config, assemble(config))


def work(verb: str, understood: Understood) -> object:
    """Run a verb on a configuration that has passed its checks, and return the verb's result.

    Args:
        verb: The name of the verb.
        understood: The value that `understand` has returned for this verb. Its `assembled` is passed on to the verb,
            unless it is None.
    """
    module_name, _ = _VERBS[verb]
    run_verb = getattr(import_module(module_name), verb)
    if understood.assembled is None:
        return run_verb(understood.config)
    return run_verb(understood.config, understood.assembled)


def _end(verb: str, message: str) -> NoReturn:
    """End with a message instead of a traceback: the user can mend it (HYDRA_FULL_ERROR=1 shows the traceback)."""
    print(f"visllama {verb}: {printable(message)}", file=sys.stderr, flush=True)
    sys.exit(2)


class BeforeTheFolder(Callback):
    """Check the configuration before a run folder is made, so that a wrong one leaves nothing behind.

    Hydra calls its methods, because `conf/program/run.yaml` names this class as a callback.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check a sweep as a whole before its jobs start; if it is wrong, end the program with a message.

        Args:
            config: The whole configuration, with `hydra`.
            kwargs: Further arguments from Hydra; `config_name` is the verb.
        """
        verb: str = kwargs["config_name"]

        # The sweep's folder may be named after what was chosen.
        HydraConfig.instance().set_config(config)
        try:
            check_sweep(config)
        except ConfigError as error:
            _end(verb, str(error))
        except Exception:
            traceback.print_exc()
            sys.exit(1)

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the configuration and the folder of a single run, and keep the result for the job that Hydra starts.

        Where something is wrong, the program ends with a message. With `check_only` the verb runs here, and the program
        ends with exit code 0.

        Args:
            config: The whole configuration, with `hydra`. The run's folder is written into it.
            kwargs: Further arguments from Hydra; `config_name` is the verb.
        """
        verb: str = kwargs["config_name"]
        if verb not in _VERBS:
            _end(f"--config-name {verb}", "a verb chooses its config by itself: leave this out")

        HydraConfig.instance().set_config(config)
        cfg = without_hydra(config)
        # `understand` does this again: before it torch may be imported, and a signal can come in those seconds.
        if verb == "train":
            preemption.configure(cfg.trainer.preempted_exit_code, cfg.trainer.requeue)

        # Whatever is raised ends the program here: Hydra would make a warning of it, and go on.
        try:
            check_single(config)
            _name_folder(config)
            with env_override(config.hydra.job.env_set), console.before_the_log():
                understood = understand(verb, cfg)
            check_folder(config, cfg, make=not cfg.get("check_only"))
            if cfg.get("check_only"):
                work(verb, understood)
                sys.exit(0)
            _WAITING.append(understood)
        except Exception as error:
            message = without_room(error, verb) or explain(error, sys.argv[1:], verb)
            if message is None or _WANTS_TRACEBACK:
                traceback.print_exc()
                sys.exit(1)
            _end(verb, str(message))


def _name_folder(config: DictConfig) -> None:
    """Write the run's folder into the configuration, as Hydra does when it makes the folder."""
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(find_folder(config))
    HydraConfig.instance().set_config(config)


def check_sweep(config: DictConfig) -> None:
    """Check a sweep (`-m`) before its jobs start, and make Hydra use our launcher or sweeper where one was chosen.

    Args:
        config: The whole configuration, with `hydra`.

    Raises:
        ConfigError: If the configuration holds a secret (a key or a password), if torchrun or srun has started several
            ranks, if `launch=slurm` is chosen where there is no queue, if the optional packages of `launch=slurm` or
            `search=` are not installed, or if `search=` is chosen for another verb than `train` or together with a grid
            (`sweep=`).
    """
    check_secrets(without_hydra(config), config.hydra.overrides.task)
    _refuse_ranks_of_sweep()

    choices = config.hydra.runtime.choices
    if choices.get("hydra/launcher") == "slurm":
        # Imported here, because submitit is an extra.
        try:
            from visllama.sweep.slurm import use_launcher
        except ModuleNotFoundError as error:
            if error.name != "submitit":
                raise
            raise ConfigError("launch=slurm is an extra, which is not there:  pip install 'visllama[slurm]'") from error

        use_launcher(choices.get("launch"), config.get("trainer"))
    if choices.get("hydra/sweeper") == "search":
        _prepare_search(config)


def _refuse_ranks_of_sweep() -> None:
    """Refuse a sweep for which torchrun or srun has started several ranks.

    Raises:
        ConfigError: If there are several.
    """
    if _STARTERS.isdisjoint(os.environ):
        return
    # Imported here, because it imports torch, which takes seconds.
    from visllama.machine.devices import started_ranks

    started = started_ranks()
    if started is None:
        return
    num_ranks = started.num_nodes * started.per_node
    if num_ranks > 1:
        raise ConfigError(
            f"-m: {started.launcher} has started {num_ranks} ranks, each of which would go through the sweep by "
            f"itself: leave out {started.launcher}, and give trainer.devices= (the ranks of each job are started by "
            f"it), or launch=slurm"
        )


def _prepare_search(config: DictConfig) -> None:
    """Make Hydra ask our sweeper for the jobs of a search.

    Raises:
        ConfigError: If the verb is not `train`, if a grid is chosen too, or if Optuna is not installed.
    """
    choices = config.hydra.runtime.choices
    if config.hydra.job.config_name != "train":
        raise ConfigError(f"search={choices.get('search')}: only train searches: leave it out")
    if choices.get("sweep"):
        raise ConfigError(f"sweep={choices['sweep']} search={choices.get('search')}: a grid or a search: leave one out")

    # Imported here, because Optuna is an extra.
    try:
        from visllama.sweep.search import use_sweeper
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ConfigError("search= is an extra, which is not there:  pip install 'visllama[search]'") from error

    use_sweeper()


def check_single(config: DictConfig) -> None:
    """Check that a run without `-m` names no launcher of sweeps, and fits the ranks that torchrun or srun has started.

    Args:
        config: The whole configuration, with `hydra`.

    Raises:
        ConfigError: If the run names a launcher, or if `trainer` asks for another number of ranks than were started.
            The message names what to type instead.
    """
    choices = config.hydra.runtime.choices
    overrides = list(config.hydra.overrides.task)
    # A job of a sweep that is resumed, or started again as a further rank, still names its launcher.
    is_replayed = config.get("resume") or "LOCAL_RANK" in os.environ
    if choices.get("hydra/launcher", "basic") != "basic" and not is_replayed:
        all_words = [*overrides, *config.hydra.overrides.hydra]
        launcher = [word for word in all_words if word.startswith(_LAUNCHERS)]
        launcher = launcher or [f"hydra/launcher={choices['hydra/launcher']}"]
        others = [word for word in overrides if word not in launcher]
        raise ConfigError(
            f"{' '.join(launcher)} starts the jobs of a sweep; without -m this run would be on this very machine, in "
            f"silence. A sweep, also of one:  -m {shlex.join([*launcher, *others])}  or leave out {' '.join(launcher)}"
        )

    if not _STARTERS.isdisjoint(os.environ) and "trainer" in config:
        # Imported here, because it imports torch, which takes seconds.
        from visllama.machine.devices import count_ranks

        trainer = config.trainer
        count_ranks(trainer.num_nodes, trainer.devices, trainer.accelerator)


def _verb(name: str) -> Callable[[], None]:
    """Return the entry point of a verb: compose its config, run it, and end with a message where one helps."""

    def job(cfg: DictConfig) -> object:
        """Run the verb on a configuration: Hydra calls this for a run, or for each job of a sweep."""
        try:
            # The jobs of a sweep have not been understood before: Hydra calls `on_run_start` for single runs alone.
            # Bound to no name: this frame outlives the job where its error is returned, and would hold the data.
            return work(name, _WAITING.pop() if _WAITING else understand(name, cfg))
        except Exception as raised:
            error = without_room(raised, name, run_folder()) or raised
            if logging.getLogger().handlers:
                logging.getLogger("visllama").exception("failed")

            if invocation().is_of_sweep:
                print(f"this job failed: {error}", file=sys.stderr, flush=True)
                # The frames hold the model, on a GPU that the next job needs.
                traceback.clear_frames(raised.__traceback__)
                # Returned, not raised: the sweep goes on, and its table shows the error.
                return error

            if isinstance(error, ConfigError) and not _WANTS_TRACEBACK:
                _end(name, str(error))
            raise

    def run() -> None:
        """Run the verb on the arguments in `sys.argv`."""
        if "--version" in sys.argv[1:]:
            _print_version()
            return
        if name == "prepare" and not sys.argv[1:]:
            _end(name, _sources())

        # A log that cannot be written keeps nobody from training.
        logging.raiseExceptions = False
        if name == "train":
            preemption.listen()
        if name in _ON_RANKS:
            preemption.end_with_parent()

        register()
        job.__name__ = name
        try:
            words = [_as_hydra_reads(word, name) for word in sys.argv[1:]]
            if name in _ON_RANKS:
                words = replay(words, name)
            sys.argv[1:] = options_first(words)
        except ConfigError as error:
            _end(name, str(error))
        except Finished as finished:
            console.say(str(finished))
            return

        wrong_option = explain_options(sys.argv[1:], name)
        if wrong_option is not None:
            _end(name, wrong_option)

        # Hydra then hands its errors on, and we say what to type instead.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        compose_and_run = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(job)
        try:
            compose_and_run()
        except Exception as error:
            if _WANTS_TRACEBACK:
                raise
            message = without_room(error, name) or explain(error, sys.argv[1:], name)
            if message is None:
                _fail(name, error)
            _end(name, str(message))

        # Of ranks that have worked together, the interpreter may abort when it is taken down (see `end_now`).
        if not console.is_first_rank() or preemption.watched():
            preemption.end_now(0)

    return run


def _as_hydra_reads(word: str, verb: str) -> str:
    """Return an argument as Hydra reads it: several values with commas between them become a list."""
    # `evaluation` is a group of other verbs; `report` has a key, which is easily mixed up with it.
    if verb == "report" and word.startswith("evaluation="):
        word = word.replace("evaluation", "evaluations", 1)
    return lists_of(word, _LISTS.get(verb, ()))


def _fail(verb: str, error: Exception) -> NoReturn:
    """End with the traceback of an error that no message explains, from the verb's own code on, and where its log is.

    HYDRA_FULL_ERROR=1 shows the frames of Hydra too.
    """
    frame = error.__traceback__
    first_frame = frame
    while frame is not None:
        # What this file calls last is the verb.
        if frame.tb_frame.f_code.co_filename == __file__:
            first_frame = frame.tb_next or frame
        frame = frame.tb_next
    traceback.print_exception(type(error), error, first_frame)

    # An error between the jobs of a sweep has no folder, or one without a log.
    has_folder = HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir")
    if has_folder and (run_folder() / "log.txt").is_file():
        print(f"visllama {verb}: stopped by this error; {run_folder()}/log.txt has it too", file=sys.stderr, flush=True)
    sys.exit(1)


def _print_version() -> None:
    """Print the versions that a report of an error needs."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "transformers", "hydra-core"))
    print(f"visllama {version('visllama')} ({libraries}, Python {platform.python_version()})")


def _sources() -> str:
    """Return a text that lists the sources of `prepare`, each with its command."""
    lines = ["choose a source:"]
    for path in sorted((conf_dir() / "source").glob("*.yaml")):
        # The second line of each file is a comment: what the source reads, three spaces, the command.
        second_line = path.read_text(encoding="utf-8").splitlines()[1]
        description, _, command = second_line.lstrip("# ").partition("   ")
        lines.append(f"  {command.strip()}\n      {description}")

    lines.append("  visllama prepare source=NAME --help  shows the keys of one")
    return "\n".join(lines)


def without_room(error: Exception, verb: str, folder: Path | None = None) -> ConfigError | None:
    """Return a `ConfigError` for a file that could not be written (a full disk, for example); None for other errors.

    The new error says which file failed, and what to do; it is returned, not raised.

    Args:
        error: The error that was raised: a `WriteFailed`, or a library's own `OSError` of a full disk or quota.
        verb: The verb that was running. After `train`, the message says which weights or checkpoints are safe.
        folder: The run's folder; None if it was not made yet.
    """
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        place = error.filename or folder or "the run's folder"
        error = WriteFailed(place, error.strerror or str(error))
    if not isinstance(error, WriteFailed):
        return None

    # A training has checkpoints from which it can go on; any other verb has to begin again.
    if verb != "train" or folder is None:
        return ConfigError(f"{error}: nothing of it is there: mend that, and type the same again")
    return ConfigError(f"{error}: {what_is_safe(folder)}")


def options_first(arguments: list[str]) -> list[str]:
    """Return command line arguments with all options (`-m`) first, and all overrides (`key=value`, `~key`) behind them.

    The order is otherwise kept, and the value of an option stays behind it. Hydra's parser fails where overrides stand
    on both sides of an option (`a=1 -m b=2`).
    """
    options = []
    overrides = []

    previous = ""
    for argument in arguments:
        is_override = not argument.startswith("-") and ("=" in argument or argument.startswith("~"))
        # The value of an option may look like an override.
        if is_override and previous not in _WITH_VALUE:
            overrides.append(argument)
        else:
            options.append(argument)
        previous = argument
    return options + overrides


train = _verb("train")
evaluate = _verb("evaluate")
caption = _verb("caption")
prepare = _verb("prepare")
benchmark = _verb("benchmark")


def main() -> None:
    """Run the verb that the command line (`sys.argv`) names first.

    `--version` prints the version instead. Without an argument, or with `--help`, the list of verbs is printed, and the
    program ends with exit code 0; for an unknown verb the list is printed too, and the exit code is 2.
    """
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb == "--version":
        _print_version()
        return
    if verb not in _VERBS:
        verbs = [f"  {name:10} {text}" for name, (_, text) in _VERBS.items()]
        print("visllama VERB [key=value ...]\n", *verbs, sep="\n")
        print("\nvisllama VERB --help shows a verb's keys.")
        sys.exit(0 if verb in ("--help", "-h") else 2)

    # Hydra shows the first argument as the program's name.
    sys.argv = [f"visllama {verb}", *sys.argv[2:]]
    _verb(verb)()
