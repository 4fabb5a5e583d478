"""Answers judged: the controls, the majority's answers, and what a judgement leaves."""

from __future__ import annotations

import json

import pytest
import torch

from tests.support.judging import SETTINGS, evaluation
from tests.support.tiny import maker_of
from visllama.data.scenes.source import ScenesSource
from visllama.data.source import Source
from visllama.data.sources import judged_sources
from visllama.errors import ConfigError
from visllama.evaluation.prompts import Prompts, prompts_of_records, prompts_of_source
from visllama.evaluation.runner import judge
from visllama.evaluation.vqa_task import majority_answers, true_facts

SOURCE = {"_target_": "visllama.data.scenes.source.ScenesSource", "num_records": 6, "holds": "questions"}
EVALUATIONS = {
    "mine": evaluation(
        task="vqa", split="test", batch_size=4, metrics=["accuracy"], source=SOURCE, template="question_answer",
        controls=["shuffled_images", "no_images", "majority_answer", "true_facts"], decoding={"max_new_tokens": 3},
    )
}  # fmt: skip


def asked(num_records: int = 6) -> Prompts:
    return prompts_of_source(ScenesSource("test", num_records, holds="questions"), "mine")


def test_true_facts_stand_where_the_picture_was(make_model):
    model, prompts = make_model(dtype=torch.float32), asked()
    maker = maker_of(model).as_judged(None, "question_answer")
    told, record = true_facts(prompts)[0], prompts[0].record
    ids = maker.prompt_ids(told.record, told.num_images)
    question = record["questions"][0]["question"]
    assert model.tokenizer.decode(ids[1:]) == f"{record['facts']}\nquestion: {question} answer:"


def test_the_majority_answers_by_the_question_then_its_type_then_at_all():
    def of(question, answer, kind):
        return {"questions": [{"question": question, "answers": [answer], "type": kind}]}

    train = [
        of("a?", "x", "one"),
        of("a?", "y", "one"),
        of("a?", "y", "one"),
        of("b?", "z", "two"),
        of("c?", "y", "two"),
        of("d?", "z", "two"),
    ]
    records = [of("a?", "", "one"), of("b?", "", "two"), of("new?", "", "two"), of("new?", "", "three")]
    prompts = prompts_of_records([{"key": str(n), **record} for n, record in enumerate(records)])
    assert majority_answers(prompts, train) == ["y", "z", "z", "y"]


def test_judging_leaves_answers_and_a_page(make_model, tmp_path):
    model = make_model(dtype=torch.float32)
    result = judge(
        model, maker_of(model), EVALUATIONS, judged_sources(EVALUATIONS, []), SETTINGS, tmp_path, "these weights"
    )["mine"]
    records = [prompt.record for prompt in asked()]
    assert (result["task"], result["n"], list(result["metrics"])) == ("vqa", len(records), ["accuracy"])
    assert set(result["controls"]) == set(EVALUATIONS["mine"]["controls"])
    assert sum(result["counts"]["type"].values()) == len(records)
    assert result["decoding"]["max_new_tokens"] == 3, "short answers, and it is written down"
    folder = tmp_path / "evaluations" / "mine"
    said = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    answers = [{"question_id": row["question_id"], "answer": row["answer"]} for row in said]
    assert answers == json.loads((folder / "answers.json").read_text())
    assert [row["question_id"] for row in said] == [record["questions"][0]["id"] for record in records]
    assert records[0]["questions"][0]["question"] in (folder / "gallery.html").read_text()


class Twice(Source):
    """Two records whose questions have the same ids."""

    def __init__(self, split):
        self.scenes = ScenesSource(split, 2, holds="questions")

    def __len__(self):
        return 2

    def __getitem__(self, index):
        record = self.scenes[index]
        asked = [{**question, "id": number} for number, question in enumerate(record["questions"])]
        return {"key": record["key"], "image": record["image"], "questions": asked}


@pytest.mark.parametrize(
    ("controls", "says"), [([], "question ids come twice, first 0, 1"), (["true_facts"], "come twice")]
)
def test_ids_that_come_twice_are_refused_before_anything_is_generated(make_model, tmp_path, controls, says):
    model = make_model(dtype=torch.float32)
    evaluations = {"mine": EVALUATIONS["mine"] | {"controls": controls}}
    with pytest.raises(ConfigError, match=says):
        judge(model, maker_of(model), evaluations, {"mine": Twice("test")}, SETTINGS, tmp_path, "these weights")
    assert not (tmp_path / "evaluations" / "mine" / "predictions.jsonl").exists()
