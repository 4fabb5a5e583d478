"""The program: `visllama VERB key=value ...`, every verb by Hydra."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from visllama import console  # noqa: F401  (first: it looks at the clock)
from visllama.config import ConfigError, conf_dir, register

_VERBS = {
    "train": "train a stage, judge it, write the run folder",
    "evaluate": "judge weights, or score any system's captions",
    "prepare": "make data; source=scenes trains the embedded world's backbones",
}


def _verb(name: str, work: Callable[[DictConfig], object]) -> Callable[[], None]:
    """Give the entry point of a verb: compose its config, run it, and end with a message instead of a traceback."""

    def job(cfg: DictConfig) -> object:
        try:
            return work(cfg)
        except Exception as error:
            logging.getLogger("visllama").exception("failed")
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                print(f"this job failed: {error}", file=sys.stderr, flush=True)
                return error  # the sweep goes on, and its table shows it
            if isinstance(error, ConfigError) and not os.environ.get("HYDRA_FULL_ERROR"):
                print(f"visllama {name}: {error}", file=sys.stderr, flush=True)
                sys.exit(2)
            raise

    def run() -> None:
        register()
        job.__name__ = name
        sys.argv[1:] = options_first(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(job)()

    return run


def options_first(arguments: list[str]) -> list[str]:
    """Move overrides behind the options: Hydra's parser fails where they stand on both sides (`a=1 -m b=2`)."""
    options, overrides = [], []
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        is_value = previous in (
            "--config-dir",
            "-cd",
            "--config-path",
            "-cp",
            "--config-name",
            "-cn",
            "--package",
            "-p",
        )
        is_override = not argument.startswith("-") and ("=" in argument or argument.startswith("~"))
        (overrides if is_override and not is_value else options).append(argument)
    return options + overrides


def _train(cfg: DictConfig) -> object:
    from visllama.training.run import train

    return train(cfg)


def _evaluate(cfg: DictConfig) -> object:
    from visllama.evaluation.verb import evaluate

    return evaluate(cfg)


def _prepare(cfg: DictConfig) -> object:
    from visllama.data.scenes.prepare import prepare

    return prepare(cfg)


train, evaluate, prepare = (
    _verb(name, work) for name, work in (("train", _train), ("evaluate", _evaluate), ("prepare", _prepare))
)


def main() -> None:
    """Run the verb that the command line names first."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb not in _VERBS:
        print("visllama VERB [key=value ...]\n", *[f"  {name:10} {text}" for name, text in _VERBS.items()], sep="\n")
        print("\nvisllama VERB --help shows a verb's keys.")
        sys.exit(0 if verb in ("--help", "-h") else 2)
    sys.argv = [f"visllama {verb}", *sys.argv[2:]]
    {"train": train, "evaluate": evaluate, "prepare": prepare}[verb]()
