"""The verb `evaluate`: judge trained weights, or score any system's captions or answers without loading a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
    """Check that this machine can judge `weights=` by the configuration; no weights are read.

    The accelerator and the devices of `trainer` have to be there, and each `decoding` is tried on a tiny language
    model. If `predictions=` is set, nothing is checked, because files are scored without a model.

    Args:
        config: The configuration of the verb `evaluate`.

    Raises:
        ConfigError: If the machine lacks such a device, or transformers refuses a setting of a decoding. The message
            names the key and its value.
    """
    if config.predictions:
        return

    # Imported here, because scoring files needs no torch.
    from visllama.config.dry_run import check_decodings, check_machine

    check_machine(config.trainer)
    check_decodings(config)


def evaluate(config: EvaluateConfig) -> dict | None:
    """Judge `weights=`, or score `predictions=` against `references=` if that is set, and write the results.

    This function has to run inside a Hydra job. It writes metrics.json and index.html to the job's folder, and also
    `evaluations/NAME/` for each evaluation if weights are judged, or scores.jsonl if files are scored.

    Args:
        config: The configuration of the verb `evaluate`.

    Returns:
        The content of metrics.json; None on all ranks (processes that share the work) but the first.

    Raises:
        ConfigError: If the weights cannot be loaded or do not fit an evaluation, or a file has another layout.
    """
    folder = run_folder()
    if config.predictions:
        keys = ("predictions", "references", "questions", "document_frequencies")
        facts = {key: getattr(config, key) for key in keys if getattr(config, key)}
        files = {key: Path(name) for key, name in facts.items()}
        evaluations = score_files(
            folder,
            **files,
            tokenizer=config.tokenizer,
            subset=config.subset,
            metrics=config.metrics,
        )
    else:
        facts = {"weights": config.weights}
        evaluations = _judge(config, folder)
        if not is_first_rank():
            return None

    metrics = {"evaluations": evaluations, "provenance": provenance(**facts)}
    write_json(folder / "metrics.json", metrics)
    write_index(folder)
    say(f"Wrote {folder}: metrics.json; index.html shows and links all")
    return metrics


def _judge(config: EvaluateConfig, folder: Path) -> dict:
    """Judge `weights=` on all ranks, and return the entry of each evaluation in metrics.json by its name."""
    # Imported here, because scoring files needs no model, and the imports take seconds.
    import torch

    from visllama.evaluation.runner import JudgeSettings, judge_weights
    from visllama.parallel.launch import on_all_ranks

    # Before anything is judged, so that resume= can go on here; the arguments may still be refused below.
    if is_first_rank() and not config.resume:
        write_command(folder)

    torch.manual_seed(config.seed)
    # Checked with the configuration: there are weights where there are no predictions.
    assert config.weights is not None
    judge = partial(
        judge_weights,
        Path(config.weights),
        evaluations_of(config),
        JudgeSettings.of_config(config),
        folder,
    )
    return on_all_ranks(config.trainer, config.plugins, judge)


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
    """Score a file of captions, or of answers if `questions` is given, print the scores, and write `scores.jsonl`.

    No model is loaded. The arguments that follow `questions` have no effect on answers.

    Args:
        folder: An existing folder, in which `scores.jsonl` is written: a line of scores for each image or question.
        predictions: The file of captions (COCO's results, `{id: caption}` or .jsonl) or of answers (VQA's results,
            `{id: answer}` or .jsonl).
        references: The file of the captions' references (COCO's annotations or `{id: [captions]}`), or VQA's file of
            annotations.
        questions: VQA's file of questions, if answers are scored; None means that captions are scored.
        tokenizer: `ptb` drops punctuation before captions are compared, and `ptb_keep_punctuation` keeps it.
        document_frequencies: The file of references in which CIDEr counts how rare a word is; None means the references
            that are scored against.
        subset: Whether references without a prediction are left out; if false, such references raise a ConfigError.
        metrics: The metrics of captions, out of `BLEU`, `METEOR`, `ROUGE-L` and `CIDEr`.

    Returns:
        `{"predictions": entry}`, where the entry has the metrics, their intervals and the number of images or
        questions. It is what metrics.json holds under `evaluations`.

    Raises:
        ConfigError: If a file cannot be read or has another layout, the files are not of the same images or questions,
            or there is no metric of a given name.
    """
    if questions is not None:
        return {"predictions": _score_answers(folder, predictions, references, questions)}

    captions = read_predictions(predictions)
    content = read_json(references)
    all_references = references_of(content, references)
    frequencies_of = None if document_frequencies is None else read_references(document_frequencies)
    scored_references = all_references
    if subset:
        scored_references = {key: texts for key, texts in all_references.items() if key in captions}

    with working() as report:
        scorer = CaptionScorer(scored_references, tokenizer, frequencies_of, report)
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
    if len(scored_references) < len(all_references):
        result["n_of"] = len(all_references)

    # Files hold ids as text alone.
    write_caption_scores(folder / "scores.jsonl", {key: key for key in scores.ids}, scores)
    say(scores_table("predictions", result))
    return {"predictions": result}


def _score_answers(folder: Path, predictions: Path, references: Path, questions: Path) -> dict[str, Any]:
    """Score answers, write `scores.jsonl`, and return the entry of the evaluation in metrics.json."""
    answers = read_answers(predictions)
    scores = score_answers(answers, read_questions(questions, references))

    result: dict[str, Any] = {"task": "vqa", "n": len(scores.ids), "metrics": scores.values}
    if scores.has_intervals:
        result["intervals"] = bootstrap_intervals(scores.metrics)
    if scores.by_type:
        result["by_type"] = scores.by_type
        result["intervals_by_type"] = scores.intervals_by_type()
        result["counts"] = scores.counts

    write_answer_scores(folder / "scores.jsonl", {key: key for key in scores.ids}, scores)
    say(vqa_table("predictions", result))
    return result
