"""Find the number by which the jobs of a sweep are compared: a metric of an evaluation, or the loss on validation."""

from __future__ import annotations

from typing import NamedTuple

from omegaconf import DictConfig

from visllama.errors import ConfigError

VAL_LOSS = "val/loss"
PRUNED = "pruned_step"
"""The key in metrics.json's `train` that holds the step after which a trial of a search was ended early."""
_MAIN_METRIC = {"caption": "CIDEr", "vqa": "accuracy"}
_CAPTION_SCALE = 100
"""The factor that metrics of captions are printed with, as in papers; files hold pycocoevalcap's own scale."""
_PARTS = {
    "BLEU": ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"],
    "CLIPScore": ["CLIPScore", "RefCLIPScore"],
    "CHAIR": ["CHAIRs", "CHAIRi"],
}
"""The names of the figures that a metric consists of, for the metrics that have several figures."""


class Objective(NamedTuple):
    """One number that a run measures, by which jobs can be compared.

    Attributes:
        name: The number's name, as the key `objective` takes it: "EVALUATION/METRIC", or "val/loss".
        is_higher_better: Whether a higher value is the better one.
        scale: The factor that a value is multiplied by when it is printed.
        digits: The number of digits behind the point when it is printed.
    """

    name: str
    is_higher_better: bool = True
    scale: int = 1
    digits: int = 1

    @property
    def evaluation(self) -> str | None:
        """The name of the evaluation that the metric belongs to; None for the loss."""
        return None if self.name == VAL_LOSS else self.name.rpartition("/")[0]

    @property
    def metric(self) -> str:
        """The last name alone: "CIDEr" of "scenes_caption/CIDEr", "loss" of "val/loss"."""
        return self.name.rpartition("/")[2]

    @property
    def label(self) -> str:
        """The last name with its scale, for a column's header: "CIDEr x100", or "accuracy" where the scale is 1."""
        return self.metric if self.scale == 1 else f"{self.metric} x{self.scale}"

    @property
    def title(self) -> str:
        """The whole name with its scale, to print before values: "scenes_caption/CIDEr x100"."""
        return self.name if self.scale == 1 else f"{self.name} x{self.scale}"

    @property
    def direction(self) -> str:
        """Which values are better, in words: "higher is better" or "lower is better"."""
        return "higher is better" if self.is_higher_better else "lower is better"

    def show(self, value: float) -> str:
        """Return a measured value as text for printing: times the scale, rounded to the digits, without the name."""
        scaled = self.scale * value
        return f"{scaled:.{self.digits}f}"


def main_objectives(cfg: DictConfig) -> list[Objective]:
    """Return one number for each evaluation that a run is judged by, its main metric, then the loss on validation.

    The main metric of captions is CIDEr. That of questions is accuracy, or, if the evaluation does not list accuracy,
    the first metric that it lists. Evaluations come in the order of the config. With `judge=false` the list has no
    evaluations; without `trainer.val_check_interval` it has no loss.

    Args:
        cfg: The configuration of a run of `train`.
    """
    by_evaluation: dict[str | None, Objective] = {}
    for objective in possible_objectives(cfg):
        # The main metric of an evaluation comes first.
        by_evaluation.setdefault(objective.evaluation, objective)
    return list(by_evaluation.values())


def possible_objectives(cfg: DictConfig) -> list[Objective]:
    """Return every number that a run of `train` with this config measures and jobs can be compared by.

    Evaluations come in the order of the config (none with `judge=false`), each with its main metric first, then the
    loss on validation, if `trainer.val_check_interval` is set. A metric that consists of several
    numbers, such as BLEU, has one entry for each number.

    Args:
        cfg: The configuration of a run of `train`.
    """
    objectives = []
    judged = cfg.evaluation if cfg.judge else {}
    for name, evaluation in judged.items():
        scale = _CAPTION_SCALE if evaluation.task == "caption" else 1
        for metric in _metrics(evaluation):
            for part in _PARTS.get(metric, [metric]):
                # CHAIR counts objects that a caption names and the picture does not hold.
                is_higher_better = not part.startswith("CHAIR")
                objectives.append(Objective(f"{name}/{part}", is_higher_better, scale=scale))

    # null: the run is never validated, and so has no such loss.
    if cfg.trainer.val_check_interval:
        objectives.append(Objective(VAL_LOSS, is_higher_better=False, digits=3))
    return objectives


def find_objective(cfg: DictConfig) -> Objective | None:
    """Return the number that the key `objective` names, out of those that the run measures.

    Where the key is null, this is the first of `possible_objectives`, or None if the run measures nothing.

    Args:
        cfg: The configuration of a run of `train`.

    Raises:
        ConfigError: If the run does not measure what is named; the message lists what it measures.
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
    """Return the names of an evaluation's metrics, the main one first, where it is computed."""
    main = _MAIN_METRIC[evaluation.task]
    metrics = list(evaluation.metrics)

    # CIDEr is computed for every caption evaluation, also where its list of metrics does not name it.
    if evaluation.task == "caption" or main in metrics:
        return list(dict.fromkeys([main, *metrics]))
    return metrics
