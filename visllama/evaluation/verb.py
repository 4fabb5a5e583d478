"""The verb `evaluate`: judge trained weights, or score any system's captions or answers with no model loaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from visllama.config.invocation import run_folder
from visllama.config.plain import evaluations as evaluations_of
from visllama.config.schema import EvaluateConfig
from visllama.console import is_first_rank, say, working
from visllama.evaluation.captions import read_predictions, read_references, score_captions
from visllama.evaluation.index_page import write_index
from visllama.evaluation.report import provenance, scores_table, vqa_table, write_json
from visllama.evaluation.statistics import intervals, vqa_intervals
from visllama.evaluation.vqa import read_answers, read_questions, score_answers


def assemble(config: EvaluateConfig) -> None:
    """Try on this machine what the config asks of it; where files are scored, nothing is asked.

    Raises:
        ConfigError: Naming the key, the value found, and what to do.
    """
    if config.predictions:
        return
    from visllama.config.dry_run import check_decodings, check_machine  # here: scoring files needs no torch

    check_machine(config.trainer)
    check_decodings(config)


def evaluate(config: EvaluateConfig) -> dict | None:
    """Judge `weights=`, or score `predictions=` against `references=`; writes the run folder.

    Returns:
        The content of metrics.json on the first rank, None on others.
    """
    folder = run_folder()
    if config.predictions:
        keys = ("predictions", "references", "questions")
        given = {key: getattr(config, key) for key in keys if getattr(config, key)}
        evaluations = score_files(**{key: Path(name) for key, name in given.items()})
        facts = dict(given)
    else:
        # Imported here: scoring files needs no model, and none of its seconds.
        import torch

        from visllama.evaluation.runner import JudgeSettings, judge_weights
        from visllama.parallel.launch import on_all_ranks

        torch.manual_seed(config.seed)
        settings = JudgeSettings.of_config(config)
        judge = partial(judge_weights, Path(config.weights), evaluations_of(config), settings, folder)
        evaluations = on_all_ranks(config.trainer, config.plugins, judge)
        if not is_first_rank():
            return None
        facts = {"weights": config.weights}
    metrics = {"evaluations": evaluations, "provenance": provenance(**facts)}
    write_json(folder / "metrics.json", metrics)
    write_index(folder)
    say(f"Wrote {folder}: metrics.json; index.html shows and links all")
    return metrics


def score_files(predictions: Path, references: Path, questions: Path | None = None) -> dict:
    """Score any system's captions, or its answers to `questions`; gives metrics.json's `evaluations`."""
    if questions is not None:
        return {"predictions": _score_answers(predictions, references, questions)}
    captions, expected = read_predictions(predictions), read_references(references)
    with working() as report:
        scores = score_captions(captions, expected, report=report)
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
