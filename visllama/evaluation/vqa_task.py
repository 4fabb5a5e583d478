"""The task `vqa`: let a model answer the questions of an evaluation, and score the answers and those of controls.

A control answers the same questions without the right pictures, which shows how well they are answered without sight.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from visllama.config.choices import YES_NO_METRICS
from visllama.console import is_first_rank, say
from visllama.data.source import Source
from visllama.data.sources import build_source
from visllama.data.turns import answer_of
from visllama.errors import ConfigError, require
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.gallery import Shown, write_gallery
from visllama.evaluation.generation import Generated, write_all_texts
from visllama.evaluation.per_image import write_answer_scores
from visllama.evaluation.prompts import Prompt, Prompts
from visllama.evaluation.report import vqa_table, write_json
from visllama.evaluation.statistics import bootstrap_intervals
from visllama.evaluation.task import Task
from visllama.evaluation.vqa import TYPES, Asked, VqaScores, check_yes_no, score_answers, score_yes_no
from visllama.model.visllama import VisLlama

_TYPES = ("type", *TYPES)
"""The keys of a question that may hold its type, for example `answer_type`: "yes/no"."""
_MAJORITY_ANSWER = "majority_answer"
"""The control that answers from the training records, without a model."""


def true_facts(prompts: Prompts) -> Prompts:
    """Return new prompts in which the picture is replaced by a text that describes it, as the system's turn.

    The scores of these prompts show what the language model could answer if it saw everything.

    Args:
        prompts: Prompts with one question each, whose records hold the describing text under `facts`.

    Raises:
        KeyError: If a record has no `facts`.
    """
    changed = []
    for prompt in prompts:
        turns = [
            {"from": "system", "value": prompt.record["facts"]},
            {"from": "human", "value": prompt.record["questions"][0]["question"]},
            {"from": "gpt", "value": ""},
        ]
        record = {"key": prompt.record["key"], "conversations": turns}
        changed.append(Prompt(record, None, 0))

    # No picture is ever asked for, since none of these prompts shows one.
    return Prompts(changed, lambda _: [])


_CONTROLS = {
    "shuffled_images": Prompts.shuffled,
    "no_images": Prompts.without_pictures,
    "true_facts": true_facts,
}


def majority_answers(prompts: Prompts, train: Source) -> list[str]:
    """Answer each prompt's question without a model, by the most frequent answer in the training records.

    The training answers to the same question are counted. If no training record asks that question, the answers to
    questions of the same type are counted; if that type is unknown too, the answers to all questions. Of equally
    frequent answers the one that was met first is taken.

    Args:
        prompts: Prompts with one question each.
        train: The source of the training records, at least one, each of which has `questions`. All records are read.

    Returns:
        The answer to each prompt, in the order of the prompts.
    """
    counts: defaultdict[tuple, Counter[str]] = defaultdict(Counter)
    for index in range(len(train)):
        for asked in train[index]["questions"]:
            answer = answer_of(asked)
            for group in _groups(asked):
                counts[group][answer] += 1

    answers = []
    for prompt in prompts:
        groups = _groups(prompt.record["questions"][0])
        # The last group is that of all questions, so there is always one.
        first_known = next(group for group in groups if group in counts)
        [(answer, _)] = counts[first_known].most_common(1)
        answers.append(answer)
    return answers


def _groups(asked: Mapping) -> list[tuple]:
    """Return the keys of a question's groups: its text, its types, and `()`, the group of all questions."""
    types = [("type", asked[kind]) for kind in _TYPES if kind in asked]
    return [("text", asked["question"]), *types, ()]


def asks_yes_or_no(config: Mapping) -> bool:
    """Return whether an evaluation has a metric of yes/no questions (precision, recall, F1 or yes_share).

    If so, every answer of the model is read as yes or no before it is scored.

    Args:
        config: The configuration of the evaluation, with its `metrics`.
    """
    return any(metric in YES_NO_METRICS for metric in config["metrics"])


def check_questions(prompts: Prompts, name: str, config: Mapping) -> None:
    """Check that the questions of an evaluation can be scored; no model is needed.

    Args:
        prompts: The prompts of the evaluation, with one question each.
        name: The name of the evaluation, for the message.
        config: The configuration of the evaluation, with its `metrics`.

    Raises:
        ConfigError: If a question's id comes more than once, or if the metrics are those of yes/no questions and the
            annotators of a question do not all say yes or all say no. The message names the first five ids.
    """
    ids = question_ids(prompts, name)
    if not asks_yes_or_no(config):
        return

    questions = {}
    for question_id, prompt in zip(ids, prompts, strict=True):
        questions[str(question_id)] = _asked(prompt)
    try:
        check_yes_no(questions)
    except ConfigError as error:
        raise ConfigError(f"evaluation.{name}.metrics: {error}") from error


def question_ids(prompts: Prompts, name: str) -> list[int | str]:
    """Return the id of each prompt's question, in the order of the prompts. Answers are written under these ids.

    A question without an `id` gets `KEY/NUMBER`: the key of its record and the number of its prompt.

    Args:
        prompts: The prompts of the evaluation, with one question each.
        name: The name of the evaluation, for the message.

    Raises:
        ConfigError: If an id comes more than once, naming the first five.
    """
    ids = []
    for number, prompt in enumerate(prompts):
        question = prompt.record["questions"][0]
        key_and_number = f"{prompt.record['key']}/{number}"
        ids.append(question.get("id", key_and_number))

    # As text, because 7 and "7" are the same id in a file of answers.
    counts = Counter(str(question_id) for question_id in ids)
    duplicates = sorted(question_id for question_id, count in counts.items() if count > 1)
    if duplicates:
        first = ", ".join(duplicates[:5])
        raise ConfigError(f"evaluation.{name}.source: {len(duplicates)} question ids come twice, first {first}")
    return ids


def judge_answers(model: VisLlama, captioner: Captioner, task: Task) -> dict:
    """Let a model answer the questions of an evaluation, score the answers, and write and print the results.

    Writes predictions.jsonl, answers.json (VQA's results), scores.jsonl, gallery.html and, for each control (the same
    questions without the right pictures) that the model answers, controls/NAME.jsonl to `task.folder`. Answers that
    predictions.jsonl already holds are not generated again.

    Args:
        model: A model with all its weights, on the device that computes.
        captioner: The captioner that generates, with the decoding of the evaluation.
        task: The evaluation; its folder has to exist.

    Returns:
        The entry of the evaluation in metrics.json; an empty mapping on all ranks but the first.

    Raises:
        ConfigError: If a question id comes more than once, a prompt does not fit the language model's positions, a
            picture cannot be decoded, or the source lacks the facts or training records that a control needs.
    """
    name = task.name
    config = task.config
    prompts = task.prompts
    ids = question_ids(prompts, name)

    # Whatever can be refused is refused here, before hours of generation.
    if "true_facts" in config["controls"]:
        has_facts = all("facts" in prompt.record for prompt in prompts)
        require(has_facts, f"evaluation.{name}.controls: true_facts, and the source's records have no facts")
    train = None
    if _MAJORITY_ANSWER in config["controls"]:
        train = build_source(f"evaluation.{name}.source", config["source"], "train", task.plugins)
    controls = {control: _CONTROLS[control](prompts) for control in config["controls"] if control in _CONTROLS}
    for checked_prompts in (prompts, *controls.values()):
        captioner.check_room(model, checked_prompts, f"evaluation.{name}: ")

    control_names = ", ".join(config["controls"])
    again = f", and again for each control: {control_names}" if control_names else ""
    say(f"{name}: answering {len(prompts)} questions{again}")
    log_ids = [{"question_id": question_id} for question_id in ids]
    generated = write_all_texts(model, captioner, task, log_ids, "answer", controls)
    control_answers: dict[str, list[str]] = {}
    for control in config["controls"]:
        if train is not None and control == _MAJORITY_ANSWER:
            # This control needs no model, and so no log to go on from.
            control_answers[control] = majority_answers(prompts, train)
        else:
            control_answers[control] = [each.text for each in generated.controls[control]]

    # The other ranks have helped to generate; scores are computed and written once.
    if not is_first_rank():
        return {}

    say(f"{name}: scoring {len(prompts)} answers")
    answers = [each.text for each in generated.written]
    scored = _score(task, ids, answers, control_answers)
    result = _result(task, captioner, generated, scored)

    rows = []
    for question_id, answer in zip(ids, answers, strict=True):
        rows.append({"question_id": question_id, "answer": answer})
    id_of_key = {str(question_id): question_id for question_id in ids}
    write_json(task.folder / "answers.json", rows)
    write_answer_scores(task.folder / "scores.jsonl", id_of_key, scored.scores)

    # Scores are in the order of the ids as text, and the gallery shows the order of the prompts.
    accuracies = dict(zip(scored.scores.ids, scored.scores.per_question["accuracy"], strict=True))
    in_order = [accuracies[key] for key in id_of_key]
    title = f"{name}, {config['split']}"
    shown = Shown(answers, {"accuracy": in_order}, ids)
    write_gallery(task.folder / "gallery.html", title, prompts, shown)
    say(vqa_table(name, result))
    return result


class _Scored(NamedTuple):
    """The scores of answers and of the controls.

    Attributes:
        scores: The scores of the answers.
        controls: The entry of each control in metrics.json, by the control's name: its metrics, and under `by_type` the
            scores of each type of question.
    """

    scores: VqaScores
    controls: dict[str, dict[str, Any]]


def _score(
    task: Task,
    ids: Sequence[int | str],
    answers: Sequence[str],
    control_answers: Mapping[str, Sequence[str]],
) -> _Scored:
    """Score the answers, and those of the controls.

    Args:
        task: The evaluation.
        ids: The id of each prompt's question.
        answers: The answer to each prompt's question.
        control_answers: The answers of each control.
    """
    keys = [str(question_id) for question_id in ids]
    questions = {}
    for key, prompt in zip(keys, task.prompts, strict=True):
        questions[key] = _asked(prompt)

    # Of other questions the controls are compared in accuracy alone.
    score = score_answers
    compared_metrics = ["accuracy"]
    if asks_yes_or_no(task.config):
        score = score_yes_no
        compared_metrics = task.config["metrics"]

    predictions = dict(zip(keys, answers, strict=True))
    scores = score(predictions, questions)
    controls: dict[str, dict[str, Any]] = {}
    for control, texts in control_answers.items():
        control_predictions = dict(zip(keys, texts, strict=True))
        control_scores = score(control_predictions, questions)
        values = control_scores.values
        controls[control] = {metric: values[metric] for metric in compared_metrics}
        controls[control]["by_type"] = control_scores.by_type
    return _Scored(scores, controls)


def _result(
    task: Task,
    captioner: Captioner,
    generated: Generated,
    scored: _Scored,
) -> dict[str, Any]:
    """Return the entry of the evaluation in metrics.json.

    Args:
        task: The evaluation.
        captioner: The captioner that has generated.
        generated: The answers to the prompts' questions, and those of the controls.
        scored: The scores of the answers and of the controls.
    """
    config = task.config
    scores = scored.scores
    values = scores.values
    chosen_values = {metric: values[metric] for metric in config["metrics"]}
    intervals: dict[str, list[float]] = {}
    if scores.has_intervals:
        metrics = scores.metrics
        chosen_metrics = {metric: metrics[metric] for metric in config["metrics"]}
        intervals = bootstrap_intervals(chosen_metrics)

    num_cut_off = sum(each.is_cut_off for each in generated.written)
    result = {
        "task": config["task"],
        "split": config["split"],
        "n": len(task.prompts),
        "metrics": chosen_values,
        "intervals": intervals,
        "by_type": scores.by_type,
        "intervals_by_type": scores.intervals_by_type(),
        "counts": scores.counts,
        "controls": scored.controls,
        "cut_off": num_cut_off,
        "decoding": dict(captioner.decoding),
        "hint": captioner.maker.hint,
        "template": asdict(captioner.maker.template),
        "generation_seconds": round(generated.seconds, 2),
    }
    num_images = config["num_images"]
    if num_images is not None and num_images < len(task.source):
        result["n_of"] = len(task.source)
    if task.source.origin:
        result["origin"] = task.source.origin
    return result


def _asked(prompt: Prompt) -> Asked:
    """Return the question of a prompt, as it is scored."""
    question = prompt.record["questions"][0]
    types = {}
    for kind in _TYPES:
        value = question.get(kind)
        if isinstance(value, str):
            types[kind] = value
    return Asked(question["question"], question["answers"], prompt.record["key"], types)
