"""The verbs on a composed configuration, as the program does them: checked and assembled, then done."""

from __future__ import annotations

from omegaconf import DictConfig

from visllama.cli import understand, work


def train(cfg: DictConfig) -> dict | None:
    return work("train", understand("train", cfg))


def evaluate(cfg: DictConfig) -> dict | None:
    return work("evaluate", understand("evaluate", cfg))


def prepare(cfg: DictConfig) -> dict:
    return work("prepare", understand("prepare", cfg))


def inspect(cfg: DictConfig):
    return work("inspect", understand("inspect", cfg))


def plan(cfg: DictConfig):
    return work("plan", understand("plan", cfg))
