"""The verb `evaluate`: judge trained weights, or score any system's captions or answers with no model loaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from visllama.config.evaluations import evaluations as evaluations_of
from visllama.config.evaluations import judging
from visllama.console import is_first_rank, say
from visllama.evaluation.captions import read_predictions, read_references, score_captions
from visllama.evaluation.report import provenance, scores_table, vqa_table, write_json
from visllama.evaluation.statistics import intervals, vqa_intervals
from visllama.evaluation.vqa import read_answers, read_questions, score_answers


def assemble(cfg: DictConfig) -> None:
    """Try on this machine what the config asks of it; where files are scored, nothing is asked.

    Raises:
        ConfigError: Naming the key, the value found, and what to do.
    """
    if cfg.predictions:
        return
    from visllama.config.dry_run import check_decodings, check_machine  # here: scoring files needs no torch

    check_machine(cfg.trainer)
    check_decodings(cfg)


def evaluate(cfg: DictConfig) -> dict | None:
    """Judge `weights=`, or score `predictions=` against `references=`; writes the run folder.

    Returns:
        The content of metrics.json on the first rank, None on others.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    if cfg.predictions:
        given = {key: Path(cfg[key]) for key in ("predictions", "references", "questions") if cfg[key]}
        evaluations = score_files(**given)
        facts = {key: str(cfg[key]) for key in given}
    else:
        # Imported here: scoring files needs no model, and none of its seconds.
        import torch

        from visllama.evaluation.runner import JudgeSettings, judge_weights
        from visllama.parallel.launch import on_all_ranks

        torch.manual_seed(cfg.seed)
        settings = JudgeSettings.of_config(judging(cfg))
        judge = partial(judge_weights, Path(cfg.weights), evaluations_of(cfg), settings, folder)
        evaluations = on_all_ranks(cfg.trainer, cfg.plugins, judge)
        if not is_first_rank():
            return None
        facts = {"weights": str(cfg.weights)}
    metrics = {"evaluations": evaluations, "provenance": provenance(**facts)}
    write_json(folder / "metrics.json", metrics)
    say(f"\nWrote {folder}: metrics.json" + ("" if cfg.predictions else " evaluations/"))
    return metrics


def score_files(predictions: Path, references: Path, questions: Path | None = None) -> dict:
    """Score any system's captions, or its answers to `questions`; gives metrics.json's `evaluations`."""
    if questions is not None:
        return {"predictions": _score_answers(predictions, references, questions)}
    scores = score_captions(read_predictions(predictions), read_references(references))
    result = {"task": "caption", "n": len(scores.ids), "metrics": scores.metrics, "intervals": intervals(scores)}
    say(scores_table("predictions", result))
    return {"predictions": result}


def _score_answers(predictions: Path, references: Path, questions: Path) -> dict:
    scores = score_answers(read_answers(predictions), read_questions(questions, references))
    found = {"intervals": vqa_intervals(scores), "by_type": scores.by_type, "counts": scores.counts}
    result = {"task": "vqa", "n": len(scores.ids), "metrics": scores.metrics}
    result |= {key: value for key, value in found.items() if value}
    say(vqa_table("predictions", result))
    return result
