"""Write the scores of a model card: tables for a reader, and the same figures in the two forms that the hub reads.

An evaluation may have controls: the same evaluation with other pictures than the right ones, or with none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from visllama.evaluation.metrics_file import is_number, mapping, numbers
from visllama.markdown import escape, table
from visllama.release.run_facts import RunFacts

_HUB_TASKS = {"caption": "image-to-text", "vqa": "visual-question-answering"}
"""The Hugging Face hub's name of each task of an evaluation."""
_SCORING = {
    "caption": "Captions are scored by pycocoevalcap, after its PTB tokenising, on its own scale times 100.",
    "vqa": "Answers are scored by the official VQA accuracy, 0 to 100.",
}
"""The sentence on how the texts of each task are scored."""
_CONTROLS = {
    "shuffled_images": "the model is shown another record's picture",
    "blank_images": "it is shown a blank picture",
    "no_images": "it is shown none",
    "majority_answer": "the training data's most frequent answer to such a question, and no model",
    "true_facts": "it is told in words what the picture shows, and shown none",
}
"""The meaning of each control of an evaluation, by its key in `metrics.json`."""
_MAIN_METRICS = ("CIDEr", "accuracy")
"""The metrics that an evaluation is known by; without both its first metric is taken."""
_MAX_TYPES = 12
"""The largest number of rows of a table of types; a longer one is left out."""
_PLAIN = "{images}{human}"
"""The template that adds no words to a question."""


def results_section(facts: RunFacts) -> str:
    """Return Markdown with the score tables of all evaluations of a run, and how each was measured.

    The text is empty if the run has no evaluations with scores.

    Args:
        facts: The facts about the weights, from `read_run`.
    """
    sections = []
    for name, evaluation in facts.evaluations.items():
        section = _evaluation_section(name, evaluation, facts)
        sections.append(section)
    return "\n\n".join(sections)


def _evaluation_section(name: str, evaluation: Mapping, facts: RunFacts) -> str:
    """Return Markdown with the heading of one evaluation, its tables, and how it was measured."""
    controls = mapping(evaluation, "controls")
    size = f"n = {_count(evaluation)}"
    if "split" in evaluation:
        split = escape(evaluation["split"])
        size = f"split {split}, {size}"

    paragraphs = [f"### {escape(name)}", size]
    paragraphs.append(_scores_table(evaluation, controls))
    paragraphs += _tables_by_type(evaluation, controls)
    paragraphs.append(_method(evaluation, controls, facts))
    return "\n\n".join(paragraphs)


def _scores_table(evaluation: Mapping, controls: Mapping) -> str:
    """Return the table of the scores, their intervals, and the controls' scores beside them."""
    factor = _factor(evaluation)
    scores = numbers(mapping(evaluation, "metrics"))

    rows = []
    for metric, value in scores.items():
        score = _score(value, factor)
        interval = _interval(evaluation, metric, factor)
        row = [escape(metric), f"**{score}**", interval]

        # A control may lack the metric, and then has an empty cell.
        for control in controls:
            control_value = mapping(controls, control).get(metric)
            row.append(_score(control_value, factor))
        rows.append(row)

    header = ["metric", "score", "95% interval", *_as_words(controls)]
    return table(header, rows)


def _method(evaluation: Mapping, controls: Mapping, facts: RunFacts) -> str:
    """Return the sentences on how an evaluation was measured: its scoring, controls, decoding and origin."""
    task = _task(evaluation)
    sentences = []

    if task in _SCORING:
        sentences.append(_SCORING[task])
    sentences += _meanings(controls)
    sentences += _decoding(evaluation)
    sentences += _asking(evaluation)

    versions = mapping(facts.provenance, "versions")
    version = versions.get("pycocoevalcap")
    if version and task == "caption":
        sentences.append(f"pycocoevalcap {escape(version)}.")
    if "origin" in evaluation:
        origin = escape(evaluation["origin"])
        sentences.append(f"{origin}.")
    return " ".join(sentences)


def _meanings(controls: Iterable[str]) -> list[str]:
    """Return a list with the sentence on what the controls mean; an empty list if none of them is known here."""
    # An unknown control, such as one of a newer release, has its column in the table, and no meaning here.
    known_controls = [control for control in controls if control in _CONTROLS]
    if not known_controls:
        return []

    meanings = []
    for name, control in zip(_as_words(known_controls), known_controls, strict=True):
        meanings.append(f"{name} ({_CONTROLS[control]})")
    sentence = ", ".join(meanings)
    return [f"The controls: {sentence}."]


def _as_words(keys: Iterable[str]) -> list[str]:
    """Return keys as words of Markdown: `no_images` as "no images"."""
    phrases = [key.replace("_", " ") for key in keys]
    return [escape(phrase) for phrase in phrases]


def main_metric(evaluation: Mapping) -> str:
    """Return the name that a card shows for the main score of an evaluation: "accuracy" or "CIDEr x 100".

    Args:
        evaluation: A value of `RunFacts.evaluations`. If its `task` is "vqa", the name is "accuracy"; for any other or
            a missing task it is "CIDEr x 100".
    """
    return "CIDEr x 100" if _factor(evaluation) == 100 else "accuracy"


def _task(evaluation: Mapping) -> str:
    """Return the name of an evaluation's task; an empty text where it is not known."""
    task = evaluation.get("task")
    return task if isinstance(task, str) else ""


def _factor(evaluation: Mapping) -> int:
    """Return the factor from a stored score to the one that papers print: 1 for accuracies of answers, else 100."""
    return 1 if _task(evaluation) == "vqa" else 100


def _count(evaluation: Mapping) -> str:
    """Return the number of an evaluation's records as a text, or "unknown"."""
    n = evaluation.get("n")
    return f"{n:,}" if is_number(n) else "unknown"


def _score(value: object, factor: int) -> str:
    """Return the cell with a score times a factor; an empty cell if the value is no number."""
    if isinstance(value, int | float) and is_number(value):
        return f"{value * factor:.1f}"
    return ""


def _interval(evaluation: Mapping, metric: str, factor: int) -> str:
    """Return the cell with the ends of a score's 95% interval times a factor; an empty cell if there is no interval."""
    bounds = mapping(evaluation, "intervals").get(metric)
    if not isinstance(bounds, list) or len(bounds) != 2:
        return ""

    low, high = bounds
    if not is_number(low) or not is_number(high):
        return ""
    return f"{low * factor:.1f} to {high * factor:.1f}"


def _tables_by_type(evaluation: Mapping, controls: Mapping) -> list[str]:
    """Return a table of the scores by type for each way to sort records into types, such as types of answers.

    A table that would have more than `_MAX_TYPES` rows is left out.
    """
    tables = []
    for kind in mapping(evaluation, "by_type"):
        scores = numbers(mapping(evaluation, "by_type", kind))
        if 0 < len(scores) <= _MAX_TYPES:
            counts = mapping(evaluation, "counts", kind)
            tables.append(_types_table(kind, scores, counts, controls))
    return tables


def _types_table(kind: str, scores: Mapping[str, float], counts: Mapping, controls: Mapping) -> str:
    """Return the table of the scores of each type of records, and the controls' scores beside them.

    Args:
        kind: The way to sort records into types, such as "answer_type".
        scores: The score of each type.
        counts: The number of records of each type; a type may be missing.
        controls: The controls of the evaluation, of which each may have scores of the same types.
    """
    scores_by_control = [mapping(controls, control, "by_type", kind) for control in controls]

    rows = []
    for name, score in scores.items():
        count = counts.get(name)
        count_cell = f"{count:,}" if is_number(count) else ""

        # Answers alone are scored by type, and their scores are on the scale of the tables already.
        row = [escape(name), count_cell, _score(score, 1)]
        for control_scores in scores_by_control:
            control_score = control_scores.get(name)
            row.append(_score(control_score, 1))
        rows.append(row)

    header = [*_as_words([kind]), "n", "score", *_as_words(controls)]
    return table(header, rows)


def _decoding(evaluation: Mapping) -> list[str]:
    """Return a list with the sentence on how the texts were generated; an empty list if nothing is known of it."""
    settings = _search_settings(evaluation)
    if not settings:
        return []

    # An evaluation without the key `prompt` is not said to have had none.
    prompt = _prompt(evaluation)
    if prompt:
        settings.append(f'the prompt "{escape(prompt)}"')
    elif "prompt" in evaluation:
        settings.append("no prompt")

    sentence = ", ".join(settings)
    return [f"Decoding: {sentence}."]


def _search_settings(evaluation: Mapping) -> list[str]:
    """Return the known settings by which the texts of an evaluation were generated, each in words of Markdown."""
    decoding = mapping(evaluation, "decoding")
    num_beams = decoding.get("num_beams")
    max_new_tokens = decoding.get("max_new_tokens")
    penalty = decoding.get("repetition_penalty", 1.0)
    settings = []

    if is_number(num_beams) and num_beams != 1:
        settings.append(f"{num_beams} beams")
    elif is_number(num_beams) and decoding.get("do_sample"):
        settings.append("sampled")
    elif is_number(num_beams):
        settings.append("greedy")

    if is_number(max_new_tokens):
        settings.append(f"at most {max_new_tokens} new tokens")
    if penalty != 1.0:
        settings.append(f"repetition penalty {escape(penalty)}")
    return settings


def _prompt(evaluation: Mapping) -> object:
    """Return the text that the model was given with each picture or question; a false value if there was none."""
    return evaluation.get("prompt") or evaluation.get("hint")


def _asking(evaluation: Mapping) -> list[str]:
    """Return a list with the sentence on the template of a question; an empty list if it adds no words to one."""
    human = mapping(evaluation, "template").get("human")
    if not isinstance(human, str) or human == _PLAIN:
        return []

    # A caption without a prompt follows its picture, and the template adds no words.
    has_question = _prompt(evaluation) or _task(evaluation) == "vqa"
    if not has_question:
        return []
    return [f'Asked as "{escape(human)}".']


def eval_results(facts: RunFacts) -> list[EvalResult]:
    """Return all scores of a run for the metadata of its card, in the form that the hub calls `model-index`.

    There is one entry for each metric of each evaluation, without the controls. Values are on the scale of the tables:
    accuracies of answers as they are, other scores times 100.

    Args:
        facts: The facts about the weights, from `read_run`.
    """
    results = []
    for name, evaluation in facts.evaluations.items():
        task = _task(evaluation)
        task_type = _HUB_TASKS.get(task, "image-text-to-text")
        split = _split(evaluation)
        factor = _factor(evaluation)
        scores = numbers(mapping(evaluation, "metrics"))

        for metric, value in scores.items():
            # The hub has ids of data sets here, which our evaluations are not: they are named by themselves.
            result = EvalResult(
                task_type=task_type,
                dataset_type=name,
                dataset_name=name,
                dataset_split=split,
                metric_type=metric.lower(),
                metric_name=f"{metric} x 100" if factor == 100 else metric,
                metric_value=round(value * factor, 2),
            )
            results.append(result)

    return results


def _split(evaluation: Mapping) -> str | None:
    """Return the name of the split that was evaluated; None where it is not known."""
    split = evaluation.get("split")
    return split if isinstance(split, str) else None


def eval_result_files(facts: RunFacts) -> dict[str, bytes]:
    """Return the files `.eval_results/EVALUATION.yaml` of a card, each as its content by its path.

    There is one file for each evaluation, in the form that the hub reads. It holds the main score: CIDEr or the
    accuracy, else the first metric. Nothing is written.

    The hub shows results on datasets that it counts among its benchmarks. As far as this project knows, neither
    Karpathy's split of COCO nor VQAv2 is one of them: the dataset's id is the evaluation's name.

    Args:
        facts: The facts about the weights, from `read_run`.
    """
    files = {}
    for name, evaluation in facts.evaluations.items():
        entries = eval_result_entries_to_yaml([_main_entry(name, evaluation)])
        text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
        files[f".eval_results/{name}.yaml"] = text.encode()
    return files


def _main_entry(name: str, evaluation: Mapping) -> EvalResultEntry:
    """Return the main score of an evaluation as the hub reads it, with notes on how it was measured."""
    factor = _factor(evaluation)
    scores = numbers(mapping(evaluation, "metrics"))

    # There is at least one score: `RunFacts.evaluations` has no others.
    main_metrics = [metric for metric in _MAIN_METRICS if metric in scores]
    metric = [*main_metrics, *scores][0]

    scale = f"{metric} x 100" if factor == 100 else f"{metric}, 0 to 100"
    notes = [scale, f"n = {_count(evaluation)}"]
    split = _split(evaluation)
    if split:
        notes.append(f"split {split}")
    interval = _interval(evaluation, metric, factor)
    if interval:
        notes.append(f"95% interval {interval}")

    return EvalResultEntry(
        dataset_id=name,
        task_id=_task(evaluation) or "default",
        value=round(scores[metric] * factor, 2),
        notes="; ".join(notes),
    )
