"""The verb `evaluate`: judge trained weights, or score any system's captions or answers with no model loaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from visllama.config.choices import METRICS
from visllama.config.command import write_command
from visllama.config.invocation import run_folder
from visllama.config.plain import evaluations as evaluations_of
from visllama.config.schema import EvaluateConfig
from visllama.console import is_first_rank, say, working
from visllama.evaluation.caption_files import read_json, read_predictions, read_references, references_of, types_of
from visllama.evaluation.captions import CaptionScorer
from visllama.evaluation.index_page import write_index
from visllama.evaluation.per_image import write_answer_scores, write_caption_scores
from visllama.evaluation.report import FROM_JUDGED_IMAGES, provenance, scores_table, vqa_table, write_json
from visllama.evaluation.statistics import bootstrap_intervals
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
        keys = ("predictions", "references", "questions", "document_frequencies")
        facts = {key: getattr(config, key) for key in keys if getattr(config, key)}
        files = {key: Path(name) for key, name in facts.items()}
        evaluations = score_files(
            folder, **files, tokenizer=config.tokenizer, subset=config.subset, metrics=config.metrics
        )
    else:
        # Imported here: scoring files needs no model, and none of its seconds.
        import torch

        from visllama.evaluation.runner import JudgeSettings, judge_weights
        from visllama.parallel.launch import on_all_ranks

        if is_first_rank() and not config.resume:
            write_command(folder)  # so that resume= goes on here; what is typed beside that may yet be refused
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


def score_files(
    folder: Path,
    predictions: Path,
    references: Path,
    questions: Path | None = None,
    tokenizer: str = "ptb",
    document_frequencies: Path | None = None,
    subset: bool = False,
    metrics: Sequence[str] = METRICS,
) -> dict:
    """Score any system's captions, or its answers to `questions`, and write `scores.jsonl`.

    Args:
        folder: The folder that the scores of each image are written to.
        predictions: The captions or answers.
        references: The references of the captions, or the annotations of the questions.
        questions: The questions; None where captions are scored.
        tokenizer: The tokens of captions: `ptb` or `ptb_keep_punctuation`.
        document_frequencies: References in which CIDEr counts how rare a word is; None is `references`.
        metrics: The metrics of captions.
        subset: Whether references without a prediction are left out, not refused.

    Returns:
        The `evaluations` of metrics.json.

    Raises:
        ConfigError: If a file is not what it should be, or they are not of the same images.
    """
    if questions is not None:
        return {"predictions": _score_answers(folder, predictions, references, questions)}

    captions = read_predictions(predictions)
    content = read_json(references)
    known = references_of(content, references)
    frequencies_of = None if document_frequencies is None else read_references(document_frequencies)
    scored = {key: texts for key, texts in known.items() if key in captions} if subset else known
    with working() as report:
        scorer = CaptionScorer(scored, tokenizer, frequencies_of, report)
        scores = scorer.score(captions, metrics)
        report("resampling")
        intervals = bootstrap_intervals(scores.metrics)
    result = {
        "task": "caption",
        "n": len(scores.ids),
        "metrics": scores.values,
        "intervals": intervals,
        "tokenizer": tokenizer,
        "document_frequencies": str(document_frequencies or FROM_JUDGED_IMAGES),
        **scores.by_type(types_of(content)),
    }
    if len(scored) < len(known):
        result["n_of"] = len(known)
    write_caption_scores(folder / "scores.jsonl", {key: key for key in scores.ids}, scores)
    say(scores_table("predictions", result))
    return {"predictions": result}


def _score_answers(folder: Path, predictions: Path, references: Path, questions: Path) -> dict:
    scores = score_answers(read_answers(predictions), read_questions(questions, references))
    result = {"task": "vqa", "n": len(scores.ids), "metrics": scores.values}
    if scores.has_intervals:
        result["intervals"] = bootstrap_intervals(scores.metrics)
    if scores.by_type:
        result["by_type"] = scores.by_type
        result["intervals_by_type"] = scores.intervals_by_type()
        result["counts"] = scores.counts
    write_answer_scores(folder / "scores.jsonl", {key: key for key in scores.ids}, scores)
    say(vqa_table("predictions", result))
    return result
