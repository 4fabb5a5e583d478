"""The task `vqa`: answers to an evaluation's questions, their accuracy, and how far one comes without the pictures."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict

from visllama.config.choices import YES_NO_METRICS
from visllama.console import is_first_rank, say
from visllama.data.source import Source
from visllama.data.sources import build_source
from visllama.data.turns import answer_of
from visllama.errors import ConfigError, require
from visllama.evaluation.captioner import Captioner
from visllama.evaluation.gallery import Shown, write_gallery
from visllama.evaluation.generation import generation_bars, write_texts
from visllama.evaluation.per_image import write_answer_scores
from visllama.evaluation.prompts import Prompt, Prompts
from visllama.evaluation.report import vqa_table, write_json
from visllama.evaluation.statistics import bootstrap_intervals
from visllama.evaluation.task import Task
from visllama.evaluation.vqa import TYPES, Asked, check_yes_no, score_answers, score_yes_no
from visllama.model.visllama import VisLlama

_TYPES = ("type", *TYPES)


def true_facts(prompts: Prompts) -> Prompts:
    """Ask each question about a text that tells what is in the picture: what there is to be seen, once it is known."""
    told = []
    for prompt in prompts:
        turns = [
            {"from": "system", "value": prompt.record["facts"]},
            {"from": "human", "value": prompt.record["questions"][0]["question"]},
            {"from": "gpt", "value": ""},
        ]
        told.append(Prompt({"key": prompt.record["key"], "conversations": turns}, None, 0))
    return Prompts(told, lambda _: [])  # none of them shows a picture


_CONTROLS = {
    "shuffled_images": Prompts.shuffled,
    "no_images": Prompts.without_pictures,
    "true_facts": true_facts,
}


def majority_answers(prompts: Prompts, train: Source) -> list[str]:
    """Answer each question as most training records answer it, or, of an unknown one, its type or any question."""
    counts: defaultdict[tuple, Counter] = defaultdict(Counter)
    for index in range(len(train)):
        for asked in train[index]["questions"]:
            for place in _places(asked):
                counts[place][answer_of(asked)] += 1
    answers = []
    for prompt in prompts:
        known = next(place for place in _places(prompt.record["questions"][0]) if place in counts)
        answers.append(counts[known].most_common(1)[0][0])
    return answers


def _places(asked: Mapping) -> tuple[tuple, ...]:
    return (("text", asked["question"]), *(("type", asked[kind]) for kind in _TYPES if kind in asked), ())


def asks_yes_or_no(config: Mapping) -> bool:
    """Return whether an evaluation has a metric of yes/no questions: then all answers are read as one of the two."""
    return any(metric in YES_NO_METRICS for metric in config["metrics"])


def check_questions(prompts: Prompts, name: str, config: Mapping) -> None:
    """Refuse questions that cannot be scored, before any model is loaded.

    Args:
        prompts: What is judged.
        name: The name of the evaluation, for the message.
        config: Its configuration.

    Raises:
        ConfigError: If an id comes twice, or the metrics are of other answers, naming the first five.
    """
    ids = map(str, question_ids(prompts, name))
    if asks_yes_or_no(config):
        try:
            check_yes_no({key: _asked(prompt) for key, prompt in zip(ids, prompts, strict=True)})
        except ConfigError as error:
            raise ConfigError(f"evaluation.{name}.metrics: {error}") from error


def question_ids(prompts: Prompts, name: str) -> list[int | str]:
    """Return the id of each question, by which its answer is written; where it brings none, one made of its record.

    Args:
        prompts: What is judged.
        name: The name of the evaluation, for the message.

    Raises:
        ConfigError: If an id comes twice, naming the first five.
    """
    ids = []
    for number, prompt in enumerate(prompts):
        ids.append(prompt.record["questions"][0].get("id", f"{prompt.record['key']}/{number}"))
    counts = Counter(map(str, ids))
    doubled = sorted(question for question, count in counts.items() if count > 1)
    require(
        not doubled, f"evaluation.{name}.source: {len(doubled)} question ids come twice, first {', '.join(doubled[:5])}"
    )
    return ids


def judge_answers(model: VisLlama, captioner: Captioner, task: Task) -> dict:
    """Answer a source's questions and score it.

    Writes predictions.jsonl, answers.json, scores.jsonl and gallery.html.
    """
    name, config = task.name, task.config
    prompts = task.prompts
    ids = question_ids(prompts, name)
    lacking = "true_facts" in config["controls"] and any("facts" not in prompt.record for prompt in prompts)
    require(not lacking, f"evaluation.{name}.controls: true_facts, and the source's records have no facts")
    if "majority_answer" in config["controls"]:
        train = build_source(f"evaluation.{name}.source", config["source"], "train", task.plugins)
    changed = {control: _CONTROLS[control](prompts) for control in config["controls"] if control in _CONTROLS}
    for shown in (prompts, *changed.values()):
        captioner.check_room(model, shown, f"evaluation.{name}: ")

    controls = ", ".join(config["controls"])
    again = f", and again for each control: {controls}" if controls else ""
    say(f"{name}: answering {len(prompts)} questions{again}")
    rows = [{"question_id": question} for question in ids]
    started = time.perf_counter()
    blind: dict[str, list[str]] = {}
    with generation_bars() as progress:
        written = write_texts(model, captioner, prompts, task.log(rows, "answer"), progress, name)
        seconds = time.perf_counter() - started
        for control in config["controls"]:
            if control == "majority_answer":
                blind[control] = majority_answers(prompts, train)
                continue
            log = task.log(rows, "answer", control)
            texts = write_texts(model, captioner, changed[control], log, progress, control)
            blind[control] = [each.text for each in texts]
    if not is_first_rank():
        return {}  # it has helped to generate; scores are made and written once

    say(f"{name}: scoring {len(prompts)} answers")
    answers = [each.text for each in written]
    own_ids = {str(question): question for question in ids}
    questions = {key: _asked(prompt) for key, prompt in zip(own_ids, prompts, strict=True)}
    is_yes_no = asks_yes_or_no(config)
    score = score_yes_no if is_yes_no else score_answers
    scores = score(dict(zip(own_ids, answers, strict=True)), questions)
    beside = {c: score(dict(zip(own_ids, texts, strict=True)), questions) for c, texts in blind.items()}
    compared = config["metrics"] if is_yes_no else ["accuracy"]
    metrics = {metric: scores.metrics[metric] for metric in config["metrics"]}
    result = {
        "task": config["task"],
        "split": config["split"],
        "n": len(prompts),
        "metrics": {metric: scores.values[metric] for metric in config["metrics"]},
        "intervals": bootstrap_intervals(metrics) if scores.has_intervals else {},
        "by_type": scores.by_type,
        "intervals_by_type": scores.intervals_by_type(),
        "counts": scores.counts,
        "controls": {c: {m: s.values[m] for m in compared} | {"by_type": s.by_type} for c, s in beside.items()},
        "cut_off": sum(each.is_cut_off for each in written),
        "decoding": dict(captioner.decoding),
        "hint": captioner.maker.hint,
        "template": asdict(captioner.maker.template),
        "generation_seconds": round(seconds, 2),
    }
    if config["num_images"] is not None and config["num_images"] < len(task.source):
        result["n_of"] = len(task.source)
    if task.source.origin:
        result["origin"] = task.source.origin

    rows = [{"question_id": question, "answer": answer} for question, answer in zip(ids, answers, strict=True)]
    write_json(task.folder / "answers.json", rows)
    write_answer_scores(task.folder / "scores.jsonl", own_ids, scores)
    accuracy = dict(zip(scores.ids, scores.per_question["accuracy"], strict=True))
    title = f"{name}, {config['split']}"
    in_order = [accuracy[key] for key in own_ids]
    write_gallery(task.folder / "gallery.html", title, prompts, Shown(answers, {"accuracy": in_order}, ids))
    say(vqa_table(name, result))
    return result


def _asked(prompt: Prompt) -> Asked:
    question = prompt.record["questions"][0]
    kinds = {kind: question[kind] for kind in _TYPES if isinstance(question.get(kind), str)}
    return Asked(question["question"], question["answers"], prompt.record["key"], kinds)
