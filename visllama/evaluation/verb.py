"""The verb `evaluate`: judge trained weights, or score any system's captions or answers with no model loaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from visllama.config.invocation import run_folder
from visllama.config.plain import evaluations as evaluations_of
from visllama.config.replay import write_command
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
        evaluations, facts = score_files(config)
    else:
        # Imported here: scoring files needs no model, and none of its seconds.
        import torch

        from visllama.evaluation.runner import JudgeSettings, judge_weights
        from visllama.parallel.launch import on_all_ranks

        if is_first_rank():
            write_command(folder)  # so that resume= goes on here
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


def score_files(config: EvaluateConfig) -> tuple[dict, dict]:
    """Score any system's captions, or its answers to `questions`.

    Returns:
        The `evaluations` of metrics.json, and the files that they come from, by key.
    """
    keys = ("predictions", "references", "questions", "document_frequencies")
    files = {key: getattr(config, key) for key in keys if getattr(config, key)}
    if config.questions:
        result = _score_answers(Path(config.predictions), Path(config.references), Path(config.questions))
    else:
        result = _score_captions(config)
    return {"predictions": result}, files


def _score_captions(config: EvaluateConfig) -> dict:
    captions = read_predictions(Path(config.predictions))
    content = read_json(Path(config.references))
    references = references_of(content, Path(config.references))
    frequencies_of = None
    if config.document_frequencies:
        frequencies_of = read_references(Path(config.document_frequencies))
    num_references = len(references)
    if config.subset:
        references = {key: texts for key, texts in references.items() if key in captions}

    with working() as report:
        scorer = CaptionScorer(references, config.tokenizer, frequencies_of, report)
        scores = scorer.score(captions)
        report("resampling")
        intervals = bootstrap_intervals(scores.metrics)
    result = {
        "task": "caption",
        "n": len(scores.ids),
        "metrics": scores.values,
        "intervals": intervals,
        "tokenizer": config.tokenizer,
        "document_frequencies": config.document_frequencies or FROM_JUDGED_IMAGES,
        **scores.by_type(types_of(content)),
    }
    if len(references) < num_references:
        result["n_of"] = num_references
    write_caption_scores(run_folder() / "scores.jsonl", {key: key for key in scores.ids}, scores)
    say(scores_table("predictions", result))
    return result


def _score_answers(predictions: Path, references: Path, questions: Path) -> dict:
    scores = score_answers(read_answers(predictions), read_questions(questions, references))
    result = {"task": "vqa", "n": len(scores.ids), "metrics": scores.values}
    if scores.has_intervals:
        result["intervals"] = bootstrap_intervals(scores.metrics)
    if scores.by_type:
        result["by_type"] = scores.by_type
        result["counts"] = scores.counts
    write_answer_scores(run_folder() / "scores.jsonl", {key: key for key in scores.ids}, scores)
    say(vqa_table("predictions", result))
    return result
