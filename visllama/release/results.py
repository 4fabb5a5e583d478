"""A card's results: tables for a person, and the same figures in the two forms that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from visllama.evaluation.metrics_file import is_number, mapping, numbers
from visllama.markdown import escape, table
from visllama.release.run_facts import RunFacts

_TASKS = {"caption": "image-to-text", "vqa": "visual-question-answering"}
_SCORED = {
    "caption": "Captions are scored by pycocoevalcap, after its PTB tokenising, on its own scale times 100.",
    "vqa": "Answers are scored by the official VQA accuracy, 0 to 100.",
}
_CONTROLS = {
    "shuffled_images": "the model is shown another record's picture",
    "blank_images": "it is shown a blank picture",
    "no_images": "it is shown none",
    "majority_answer": "the training data's most frequent answer to such a question, and no model",
    "true_facts": "it is told in words what the picture shows, and shown none",
}
_MAIN = ("CIDEr", "accuracy")
_MOST_TYPES = 12
_PLAIN = "{images}{human}"


def results_section(facts: RunFacts) -> str:
    """Return the tables of all evaluations, and how they were measured."""
    return "\n\n".join(_one(name, evaluation, facts) for name, evaluation in facts.evaluations.items())


def _one(name: str, evaluation: Mapping, facts: RunFacts) -> str:
    factor, controls = _factor(evaluation), mapping(evaluation, "controls")
    rows = []
    for metric, value in numbers(mapping(evaluation, "metrics")).items():
        beside = [_score(mapping(controls, control).get(metric), factor) for control in controls]
        rows.append([escape(metric), f"**{value * factor:.1f}**", _interval(evaluation, metric, factor), *beside])
    header = ["metric", "score", "95% interval", *[escape(control.replace("_", " ")) for control in controls]]

    split = f"split {escape(evaluation['split'])}, " if "split" in evaluation else ""
    lines = [f"### {escape(name)}", f"{split}n = {_count(evaluation)}", table(header, rows)]
    lines += _by_type(evaluation, controls)
    told = [_SCORED[_task(evaluation)]] if _task(evaluation) in _SCORED else []
    meant = [f"{escape(c.replace('_', ' '))} ({_CONTROLS[c]})" for c in controls if c in _CONTROLS]
    told += [f"The controls: {', '.join(meant)}."] if meant else []
    told += [_decoding(evaluation)]
    version = mapping(facts.provenance, "versions").get("pycocoevalcap")
    told += [f"pycocoevalcap {escape(version)}."] if version and _task(evaluation) == "caption" else []
    if "origin" in evaluation:
        told.append(f"{escape(evaluation['origin'])}.")
    return "\n\n".join([*lines, " ".join(filter(None, told))])


def main_metric(evaluation: Mapping) -> str:
    """Return the name of the score by which an evaluation is known, and by which its gallery is sorted."""
    return "CIDEr x 100" if _factor(evaluation) == 100 else "accuracy"


def _task(evaluation: Mapping) -> str:
    return evaluation["task"] if isinstance(evaluation.get("task"), str) else ""


def _factor(evaluation: Mapping) -> int:
    """Return what brings a score to the scale on which it is printed: captions' are times 100, as papers have them."""
    return 1 if _task(evaluation) == "vqa" else 100


def _count(evaluation: Mapping) -> str:
    n = evaluation.get("n")
    return f"{n:,}" if is_number(n) else "unknown"


def _score(value: object, factor: float) -> str:
    return f"{value * factor:.1f}" if is_number(value) else ""


def _interval(evaluation: Mapping, metric: str, factor: float) -> str:
    bounds = mapping(evaluation, "intervals").get(metric)
    if not isinstance(bounds, list) or len(bounds) != 2 or not all(map(is_number, bounds)):
        return ""
    return f"{bounds[0] * factor:.1f} to {bounds[1] * factor:.1f}"


def _by_type(evaluation: Mapping, controls: Mapping) -> list[str]:
    """Return a table of each kind of types that a person still reads."""
    tables = []
    for kind in mapping(evaluation, "by_type"):
        scores = numbers(mapping(evaluation, "by_type", kind))
        if not 0 < len(scores) <= _MOST_TYPES:
            continue
        counts = mapping(evaluation, "counts", kind)
        rows = []
        for value, score in scores.items():
            beside = [_score(mapping(controls, control, "by_type", kind).get(value), 1) for control in controls]
            count = counts.get(value)
            rows.append([escape(value), f"{count:,}" if is_number(count) else "", _score(score, 1), *beside])
        header = [escape(kind.replace("_", " ")), "n", "score", *[escape(c.replace("_", " ")) for c in controls]]
        tables.append(table(header, rows))
    return tables


def _decoding(evaluation: Mapping) -> str:
    """Tell how the texts were written, and what the model was asked."""
    decoding, told = mapping(evaluation, "decoding"), []
    if is_number(decoding.get("num_beams")):
        sampled = "sampled" if decoding.get("do_sample") else "greedy"
        told.append(sampled if decoding["num_beams"] == 1 else f"{decoding['num_beams']} beams")
    if is_number(decoding.get("max_new_tokens")):
        told.append(f"at most {decoding['max_new_tokens']} new tokens")
    if decoding.get("repetition_penalty", 1.0) != 1.0:
        told.append(f"repetition penalty {escape(decoding['repetition_penalty'])}")
    asked = evaluation.get("prompt") or evaluation.get("hint")
    said = f'the prompt "{escape(asked)}"' if asked else "no prompt" if "prompt" in evaluation else ""
    human = mapping(evaluation, "template").get("human")
    is_asked = asked or _task(evaluation) == "vqa"  # a caption without a prompt stands behind its picture alone
    written = f'Asked as "{escape(human)}".' if is_asked and isinstance(human, str) and human != _PLAIN else ""
    return " ".join([f"Decoding: {', '.join([*told, *filter(None, [said])])}." if told else "", written]).strip()


def eval_results(facts: RunFacts) -> list[EvalResult]:
    """Return all scores as the hub's `model-index` takes them, on the scale of the tables."""
    found = []
    for name, evaluation in facts.evaluations.items():
        factor = _factor(evaluation)
        for metric, value in numbers(mapping(evaluation, "metrics")).items():
            found.append(
                EvalResult(
                    task_type=_TASKS.get(_task(evaluation), "image-text-to-text"),
                    dataset_type=name,
                    dataset_name=name,
                    dataset_split=_split(evaluation),
                    metric_type=metric.lower(),
                    metric_name=f"{metric} x 100" if factor == 100 else metric,
                    metric_value=round(value * factor, 2),
                )
            )
    return found


def _split(evaluation: Mapping) -> str | None:
    return evaluation["split"] if isinstance(evaluation.get("split"), str) else None


def eval_result_files(facts: RunFacts) -> dict[str, bytes]:
    """Return the files of `.eval_results/`: the main score of each evaluation.

    The hub shows those of datasets that it counts among its benchmarks. It has neither Karpathy's split of COCO nor
    VQAv2 among them, as far as this project knows: the dataset's id is our evaluation's name.
    """
    files = {}
    for name, evaluation in facts.evaluations.items():
        scores, factor = numbers(mapping(evaluation, "metrics")), _factor(evaluation)
        metric = next((metric for metric in _MAIN if metric in scores), next(iter(scores)))
        interval = _interval(evaluation, metric, factor)
        notes = [f"{metric} x 100" if factor == 100 else f"{metric}, 0 to 100", f"n = {_count(evaluation)}"]
        notes += [f"split {evaluation['split']}"] if _split(evaluation) else []
        notes += [f"95% interval {interval}"] if interval else []
        entry = EvalResultEntry(
            dataset_id=name,
            task_id=_task(evaluation) or "default",
            value=round(scores[metric] * factor, 2),
            notes="; ".join(notes),
        )
        written = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
        files[f".eval_results/{name}.yaml"] = written.encode()
    return files
