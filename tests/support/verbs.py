"""The verbs on a composed configuration, as the program runs them: understood first, then done."""

from __future__ import annotations

from functools import partial

from omegaconf import DictConfig

from visllama.cli import understand, work


def assemble(verb: str, cfg: DictConfig) -> object:
    """Return what a verb builds before it runs, once the config has passed all checks."""
    return understand(verb, cfg).assembled


def _run(verb: str, cfg: DictConfig) -> object:
    return work(verb, understand(verb, cfg))


train, evaluate, prepare, inspect, plan = (
    partial(_run, verb) for verb in ("train", "evaluate", "prepare", "inspect", "plan")
)
