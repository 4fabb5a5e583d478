"""What the jobs of a sweep are compared by: a metric of an evaluation, or the loss on validation."""

from __future__ import annotations

from typing import NamedTuple

from omegaconf import DictConfig

from visllama.errors import ConfigError

VAL_LOSS = "val/loss"
PRUNED = "pruned_step"
"""The fact in metrics.json's `train` that a trial of a search was ended early, and after which step."""
_MAIN_METRIC = {"caption": "CIDEr", "vqa": "accuracy"}
_CAPTION_SCALE = 100
"""Caption metrics are printed so many times larger, as papers do; the files hold pycocoevalcap's own scale."""


class Objective(NamedTuple):
    """One number of a job's result.

    Attributes:
        name: As the config names it: `EVALUATION/METRIC`, or `val/loss`.
        is_higher_better: Whether the best job has the highest.
        scale: How many times larger it is where it is printed.
        digits: How many are printed behind the point.
    """

    name: str
    is_higher_better: bool = True
    scale: int = 1
    digits: int = 1

    @property
    def evaluation(self) -> str | None:
        """The evaluation that it is a metric of; None of the loss."""
        return None if self.name == VAL_LOSS else self.name.rpartition("/")[0]

    @property
    def metric(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def label(self) -> str:
        """The metric as a column's header."""
        return self.metric if self.scale == 1 else f"{self.metric} x{self.scale}"

    @property
    def title(self) -> str:
        """The whole name as it is printed before values."""
        return self.name if self.scale == 1 else f"{self.name} x{self.scale}"

    @property
    def direction(self) -> str:
        return "higher is better" if self.is_higher_better else "lower is better"

    def show(self, value: float) -> str:
        """Return a value as it is printed."""
        return f"{self.scale * value:.{self.digits}f}"


def main_objectives(cfg: DictConfig) -> list[Objective]:
    """Return the main metric of each evaluation that is judged, in the order of the config, then the loss."""
    seen = []
    for objective in possible_objectives(cfg):
        if objective.evaluation not in [other.evaluation for other in seen]:
            seen.append(objective)
    return seen


def possible_objectives(cfg: DictConfig) -> list[Objective]:
    """Return what a run of `train` with this config measures; the main metric of each evaluation comes first."""
    measured = []
    for name, evaluation in cfg.evaluation.items() if cfg.judge else ():
        parts = [part for metric in _metrics(evaluation) for part in _parts(metric)]
        scale = _CAPTION_SCALE if evaluation.task == "caption" else 1
        for part in parts:
            is_better = not part.startswith("CHAIR")  # it counts what is not there
            measured.append(Objective(f"{name}/{part}", is_better, scale=scale))
    if cfg.trainer.val_check_interval:
        measured.append(Objective(VAL_LOSS, is_higher_better=False, digits=3))
    return measured


def find_objective(cfg: DictConfig) -> Objective | None:
    """Return what `objective` names; where it is null the first that there is, or None of a run that measures nothing.

    Raises:
        ConfigError: If the run does not measure what is named.
    """
    possible = possible_objectives(cfg)
    if cfg.objective is None:
        return possible[0] if possible else None
    for objective in possible:
        if objective.name == cfg.objective:
            return objective
    names = ", ".join(objective.name for objective in possible)
    there = f"choose {names}, or null for the first of them" if names else "nothing is judged or validated"
    raise ConfigError(f"objective={cfg.objective}: this run does not measure it: {there}")


def _metrics(evaluation: DictConfig) -> list[str]:
    """Return the metrics of an evaluation, the main one first."""
    main = _MAIN_METRIC[evaluation.task]
    is_measured = evaluation.task == "caption" or main in evaluation.metrics  # CIDEr always is
    return list(dict.fromkeys([main, *evaluation.metrics])) if is_measured else list(evaluation.metrics)


def _parts(metric: str) -> list[str]:
    """Return the names under which a metric's figures stand."""
    several = {
        "BLEU": [f"BLEU-{n}" for n in range(1, 5)],
        "CLIPScore": ["CLIPScore", "RefCLIPScore"],
        "CHAIR": ["CHAIRs", "CHAIRi"],
    }
    return several.get(metric, [metric])
