"""What a configuration says of judging, as plain values: its evaluations, and how models are judged."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

_OF_JUDGING = ("trainer", "decoding", "plugins", "paths")


def evaluations(cfg: DictConfig, split: str | None = None) -> dict[str, dict]:
    """Give the evaluations resolved; with `split`, on that one instead, under a name that says so.

    In a sweep the jobs are compared on `val`: test is for the chosen one alone.
    """
    resolved = cfg.copy()
    for evaluation in resolved.evaluation.values():
        evaluation.split = split or evaluation.split
    plain = OmegaConf.to_container(resolved.evaluation, resolve=True)
    return plain if split is None else {f"{name}_{split}": evaluation for name, evaluation in plain.items()}


def judging(cfg: DictConfig) -> dict:
    """Return, as plain values, what a verb's configuration says of how models are judged: `JudgeSettings` reads it."""
    # Node by node: in a copy that holds these alone, what refers to another key would not be found.
    return {key: OmegaConf.to_container(cfg[key], resolve=True) for key in _OF_JUDGING}
