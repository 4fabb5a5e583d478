"""The verb `evaluate`: judge trained weights, or score any system's captions with no model loaded."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from visllama.checks import check_evaluate
from visllama.config import evaluations as evaluations_of
from visllama.console import say
from visllama.evaluation.captions import read_predictions, read_references, score_captions
from visllama.evaluation.report import provenance, scores_table, write_json
from visllama.evaluation.statistics import intervals


def evaluate(cfg: DictConfig) -> dict:
    """Judge `weights=`, or score `predictions=` against `references=`; writes the run folder."""
    check_evaluate(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if cfg.predictions:
        evaluations = score_files(Path(cfg.predictions), Path(cfg.references))
        facts = {key: str(cfg[key]) for key in ("predictions", "references")}
    else:
        # Imported here: scoring files needs no model, and none of its seconds.
        import torch

        from visllama.evaluation.runner import judge_weights
        from visllama.trials import check_decoding, check_machine

        torch.manual_seed(cfg.seed)
        check_machine(cfg.trainer)
        check_decoding(cfg.decoding)
        evaluations = judge_weights(Path(cfg.weights), evaluations_of(cfg), cfg, folder)
        facts = {"weights": str(cfg.weights)}
    metrics = {"evaluations": evaluations, "provenance": provenance(**facts)}
    write_json(folder / "metrics.json", metrics)
    say(f"\nWrote {folder}: metrics.json" + ("" if cfg.predictions else " evaluations/"))
    return metrics


def score_files(predictions: Path, references: Path) -> dict:
    """Score any system's captions; gives metrics.json's `evaluations`."""
    scores = score_captions(read_predictions(predictions), read_references(references))
    result = {"task": "caption", "n": len(scores.ids), "metrics": scores.metrics, "intervals": intervals(scores)}
    say(scores_table("predictions", result))
    return {"predictions": result}
