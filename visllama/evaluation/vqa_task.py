"""The task `vqa`: answers to an evaluation's questions, their accuracy, and how far one comes without the pictures."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from visllama.console import bars, is_first_rank, say
from visllama.data.order import permutation
from visllama.data.source import Source
from visllama.data.sources import build_source
from visllama.data.turns import answer_of
from visllama.errors import require
from visllama.evaluation.captioner import Captioner, read_records, write_texts
from visllama.evaluation.gallery import write_gallery
from visllama.evaluation.report import vqa_table, write_json
from visllama.evaluation.statistics import vqa_intervals
from visllama.evaluation.vqa import TYPES, Asked, score_answers
from visllama.model.visllama import VisLlama

_TYPES = ("type", *TYPES)
_PICTURES = ("image", "images")


def one_by_one(records: Sequence[Mapping]) -> list[dict]:
    """Return a record for each question."""
    return [dict(record) | {"questions": [asked]} for record in records for asked in record["questions"]]


def shuffled_images(records: Sequence[Mapping]) -> list[dict]:
    """Ask each question about the picture of another record."""
    keys = list(dict.fromkeys(record["key"] for record in records))
    cycle = permutation(len(keys), 0).tolist()
    donor = {keys[i]: keys[j] for i, j in zip(cycle, cycle[1:] + cycle[:1], strict=True)}
    pictures = {r["key"]: {name: r[name] for name in _PICTURES if name in r} for r in records}
    return [without_images([record])[0] | pictures[donor[record["key"]]] for record in records]


def without_images(records: Sequence[Mapping]) -> list[dict]:
    """Ask each question about nothing."""
    return [{name: value for name, value in record.items() if name not in _PICTURES} for record in records]


def true_facts(records: Sequence[Mapping]) -> list[dict]:
    """Ask each question about a text that tells what is in the picture: what there is to be seen, once it is known."""
    return [
        {
            "key": record["key"],
            "conversations": [
                {"from": "system", "value": record["facts"]},
                {"from": "human", "value": record["questions"][0]["question"]},
                {"from": "gpt", "value": ""},
            ],
        }
        for record in records
    ]


_CONTROLS = {"shuffled_images": shuffled_images, "no_images": without_images, "true_facts": true_facts}


def majority_answers(records: Sequence[Mapping], train: Source) -> list[str]:
    """Answer each question as most training records answer it, or, of an unknown one, its type or any question."""
    counts: defaultdict[tuple, Counter] = defaultdict(Counter)
    for index in range(len(train)):
        for asked in train[index]["questions"]:
            for place in _places(asked):
                counts[place][answer_of(asked)] += 1
    asked = [record["questions"][0] for record in records]
    return [next(counts[place].most_common(1)[0][0] for place in _places(q) if place in counts) for q in asked]


def _places(asked: Mapping) -> tuple[tuple, ...]:
    return (("text", asked["question"]), *(("type", asked[kind]) for kind in _TYPES if kind in asked), ())


def judge_answers(
    model: VisLlama, captioner: Captioner, name: str, config: Mapping, source: Source, folder: Path,
    plugins: Sequence[str],
) -> dict:  # fmt: skip
    """Answer a source's questions and score it; writes predictions.jsonl, answers.json and gallery.html."""
    records = one_by_one(read_records(source, name))
    asked = [record["questions"][0] for record in records]
    given = [question.get("id", f"{r['key']}/{i}") for i, (r, question) in enumerate(zip(records, asked, strict=True))]
    ids = list(map(str, given))
    doubled = sorted({i for i, count in Counter(ids).items() if count > 1})
    require(
        not doubled, f"evaluation.{name}.source: {len(doubled)} question ids come twice, first {', '.join(doubled[:5])}"
    )
    lacking = "true_facts" in config["controls"] and any("facts" not in record for record in records)
    require(not lacking, f"evaluation.{name}.controls: true_facts, and the source's records have no facts")
    rows = [{"question_id": question} for question in given]
    if "majority_answer" in config["controls"]:
        train = build_source(f"evaluation.{name}.source", config["source"], "train", plugins)
    changed = {control: _CONTROLS[control](records) for control in config["controls"] if control in _CONTROLS}
    for shown in (records, *changed.values()):
        captioner.check_room(model, shown, f"evaluation.{name}: ")

    controls = ", ".join(config["controls"])
    again = f", and again for each control: {controls}" if controls else ""
    say(f"{name}: answering {len(records)} questions{again}")
    started = time.perf_counter()
    said: dict[str, list[str]] = {}
    with bars() as progress:
        answers = write_texts(model, captioner, records, rows, "answer", folder / "predictions.jsonl", progress, name)
        seconds = time.perf_counter() - started
        for control in config["controls"]:
            if control == "majority_answer":
                said[control] = majority_answers(records, train)
            else:
                said[control] = write_texts(model, captioner, changed[control], rows, "answer", None, progress, control)
    if not is_first_rank():
        return {}  # it has helped to generate; scores are made and written once

    say(f"{name}: scoring {len(records)} answers")
    questions = {
        question_id: Asked(
            q["question"], q["answers"], r["key"], {t: q[t] for t in _TYPES if isinstance(q.get(t), str)}
        )
        for question_id, q, r in zip(ids, asked, records, strict=True)
    }
    scores = score_answers(dict(zip(ids, answers, strict=True)), questions)
    beside = {c: score_answers(dict(zip(ids, texts, strict=True)), questions) for c, texts in said.items()}
    result = {
        "task": config["task"],
        "split": config["split"],
        "n": len(records),
        "metrics": {metric: scores.metrics[metric] for metric in config["metrics"]},
        "intervals": vqa_intervals(scores),
        "by_type": scores.by_type,
        "counts": scores.counts,
        "controls": {c: {"accuracy": s.metrics["accuracy"], "by_type": s.by_type} for c, s in beside.items()},
        "decoding": dict(captioner.decoding),
        "hint": captioner.maker.hint,
        "template": asdict(captioner.maker.template),
        "generation_seconds": round(seconds, 2),
    }
    if source.origin:
        result["origin"] = source.origin
    write_json(folder / "answers.json", [{"question_id": q, "answer": a} for q, a in zip(given, answers, strict=True)])
    by_id = dict(zip(scores.ids, scores.per_question, strict=True))
    title = f"{name}, {config['split']}"
    write_gallery(folder / "gallery.html", title, records, answers, [by_id[key] for key in ids], "accuracy")
    say(vqa_table(name, result))
    return result
