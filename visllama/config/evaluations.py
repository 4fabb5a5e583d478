"""The evaluations of a configuration, resolved."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

_OF_JUDGING = ["trainer", "decoding", "plugins", "paths"]


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
    return OmegaConf.to_container(OmegaConf.masked_copy(cfg, _OF_JUDGING), resolve=True)
