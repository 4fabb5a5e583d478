"""What the jobs of a sweep are compared by: a metric of an evaluation, or the loss on validation."""

from __future__ import annotations

from typing import NamedTuple

from omegaconf import DictConfig

from visllama.errors import ConfigError

VAL_LOSS = "val/loss"
PRUNED = "pruned_step"
"""The key in metrics.json's `train` that holds the step after which a trial of a search was ended early."""
_MAIN_METRIC = {"caption": "CIDEr", "vqa": "accuracy"}
_CAPTION_SCALE = 100
"""The factor that caption metrics are printed with, as papers do; the files hold pycocoevalcap's own scale."""
_PARTS = {
    "BLEU": ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"],
    "CLIPScore": ["CLIPScore", "RefCLIPScore"],
    "CHAIR": ["CHAIRs", "CHAIRi"],
}
"""The names of the figures of those metrics that have several."""


class Objective(NamedTuple):
    """One number of a job's result.

    Attributes:
        name: The number as the key `objective` names it: `EVALUATION/METRIC`, or `val/loss`.
        is_higher_better: Whether the best job has the highest value.
        scale: The factor that the number is printed with.
        digits: The number of printed digits behind the point.
    """

    name: str
    is_higher_better: bool = True
    scale: int = 1
    digits: int = 1

    @property
    def evaluation(self) -> str | None:
        """The evaluation whose metric it is; None for the loss."""
        return None if self.name == VAL_LOSS else self.name.rpartition("/")[0]

    @property
    def metric(self) -> str:
        """The name of the metric alone."""
        return self.name.rpartition("/")[2]

    @property
    def label(self) -> str:
        """The metric as a column's header, with its scale."""
        return self.metric if self.scale == 1 else f"{self.metric} x{self.scale}"

    @property
    def title(self) -> str:
        """The whole name as it is printed before values, with its scale."""
        return self.name if self.scale == 1 else f"{self.name} x{self.scale}"

    @property
    def direction(self) -> str:
        """Which values are better, as a table says it."""
        return "higher is better" if self.is_higher_better else "lower is better"

    def show(self, value: float) -> str:
        """Return a value as it is printed: scaled and rounded."""
        scaled = self.scale * value
        return f"{scaled:.{self.digits}f}"


def main_objectives(cfg: DictConfig) -> list[Objective]:
    """Return the main metric of each evaluation that is judged, in the order of the config, then the loss."""
    by_evaluation: dict[str | None, Objective] = {}
    for objective in possible_objectives(cfg):
        # The main metric of an evaluation comes first.
        by_evaluation.setdefault(objective.evaluation, objective)
    return list(by_evaluation.values())


def possible_objectives(cfg: DictConfig) -> list[Objective]:
    """Return what a run of `train` with this config measures; the main metric of each evaluation comes first."""
    objectives = []
    judged = cfg.evaluation if cfg.judge else {}
    for name, evaluation in judged.items():
        scale = _CAPTION_SCALE if evaluation.task == "caption" else 1
        for metric in _metrics(evaluation):
            for part in _PARTS.get(metric, [metric]):
                # CHAIR counts objects that a caption names and the picture does not hold.
                is_higher_better = not part.startswith("CHAIR")
                objectives.append(Objective(f"{name}/{part}", is_higher_better, scale=scale))

    if cfg.trainer.val_check_interval:
        objectives.append(Objective(VAL_LOSS, is_higher_better=False, digits=3))
    return objectives


def find_objective(cfg: DictConfig) -> Objective | None:
    """Return the number that the key `objective` names.

    Where the key is null, return the first number that the run measures, or None if it measures nothing.

    Args:
        cfg: The configuration of a run of `train`.

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
    advice = f"choose {names}, or null for the first of them" if names else "nothing is judged or validated"
    raise ConfigError(f"objective={cfg.objective}: this run does not measure it: {advice}")


def _metrics(evaluation: DictConfig) -> list[str]:
    """Return the metrics of an evaluation, the main one first."""
    main = _MAIN_METRIC[evaluation.task]
    metrics = list(evaluation.metrics)

    # CIDEr is computed for every caption evaluation, also where its list of metrics does not name it.
    if evaluation.task == "caption" or main in metrics:
        return list(dict.fromkeys([main, *metrics]))
    return metrics
