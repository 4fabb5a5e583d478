"""VQAv2's official files: joined by question, all answers kept, the majority's named."""

from __future__ import annotations

import json
import shlex

import pytest

from tests.prepare.made import picture, put, read, skipped
from visllama.data.shards.index import ShardIndex
from visllama.data.shards.source import ShardSource
from visllama.errors import ConfigError


def answers(*said: str) -> list[dict]:
    return [{"answer": text, "answer_confidence": "yes", "answer_id": n} for n, text in enumerate(said, 1)]


TEN = ["no", "yes", "yes", "no", "maybe", "no", "yes", "3", "4", "5"]


def files(tmp_path, split="val2014", extra_questions=(), extra_annotations=()):
    for image in (42, 7):
        put(tmp_path / "images" / split / f"COCO_{split}_{image:012d}.jpg", picture(image))
    questions = [{"image_id": 42, "question": "Is it?", "question_id": 42001},
                 {"image_id": 7, "question": "What?", "question_id": 7000},
                 {"image_id": 42, "question": "How many?", "question_id": 42000}]  # fmt: skip
    annotations = [
        {"question_id": 7000, "image_id": 7, "answers": answers(*["cat"] * 10), "answer_type": "other"},
        {"question_id": 42000, "image_id": 42, "answers": answers(*["2"] * 4, *["3"] * 6)},
        {"question_id": 42001, "image_id": 42, "answers": answers(*TEN)},
    ]
    return (
        put(tmp_path / f"v2_OpenEnded_mscoco_{split}_questions.json",
            {"data_subtype": split, "questions": [*questions, *extra_questions]}),
        put(tmp_path / f"v2_mscoco_{split}_annotations.json", {"annotations": [*annotations, *extra_annotations]}),
    )  # fmt: skip


def call(tmp_path, questions, annotations):
    return "source=vqa", f"images={tmp_path}/images", f"questions={questions}", f"annotations={annotations}"


def test_an_image_is_a_record_with_its_questions(run, tmp_path):
    out = run(*call(tmp_path, *files(tmp_path)))
    found = read(out / "val")
    assert list(found) == [f"{42:012d}", f"{7:012d}"] and found[f"{7:012d}"][1] == [picture(7)]
    first, second = found[f"{42:012d}"][0]
    assert first == {"question": "Is it?", "answers": TEN, "answer": "no", "id": 42001}, (
        "a tie: the first that was said"
    )
    assert second["answer"] == "3" and len(second["answers"]) == 10
    assert found[f"{7:012d}"][0][0]["answer_type"] == "other"
    assert json.loads((out / "val" / "manifest.json").read_text())["kinds"] == {"questions": 2}
    assert ShardIndex.load(out / "val" / "00000.tar.idx").num_pairs == 3


def test_what_does_not_join_is_counted(run, tmp_path):
    made = files(
        tmp_path,
        extra_questions=[{"image_id": 7, "question": "?", "question_id": 1}, {"question": 3},
                         {"image_id": 7, "question": "again", "question_id": 7000}],
        extra_annotations=[{"question_id": 2, "answers": answers("x")}, {"question_id": 3, "answers": [{"answer": 3}]}],
    )  # fmt: skip
    with pytest.raises(ConfigError, match="max_bad_fraction"):
        run(*call(tmp_path, *made))
    out = run(*call(tmp_path, *made), "max_bad_fraction=0.8")
    reasons = sorted(entry["reason"] for entry in skipped(out / "val"))
    assert reasons == sorted(["no answer", "no question", "duplicate", "no question", "no answer"])


def test_files_of_two_splits_or_in_the_wrong_place_are_refused(run, tmp_path):
    questions, annotations = files(tmp_path)
    other = put(tmp_path / "v2_mscoco_train2014_annotations.json", annotations.read_bytes())
    with pytest.raises(ConfigError, match="different splits"):
        run(*call(tmp_path, questions, other))
    with pytest.raises(
        ConfigError, match="not a VQA questions file: it has no list 'questions', but the keys 'annotations'"
    ):
        run(*call(tmp_path, annotations, questions))


def test_a_question_that_is_lost_is_counted_once(run, tmp_path):
    """Whichever of its two rows is at fault: the other one is none."""
    made = files(
        tmp_path,
        extra_questions=[{"image_id": 7, "question": "Which?", "question_id": 3},
                         {"image_id": 7, "question": " ", "question_id": 4}],
        extra_annotations=[{"question_id": 3, "answers": [{"answer": 3}]}, {"question_id": 4, "answers": answers("x")}],
    )  # fmt: skip
    out = run(*call(tmp_path, *made), "max_bad_fraction=0.8")
    found = sorted((entry["where"], entry["reason"]) for entry in skipped(out / "val"))
    assert found == [("annotation 3", "no answer"), ("question 4", "no question")]


def test_the_next_command_is_named_and_composes(run, tmp_path, capsys, compose_config):
    run(*call(tmp_path, *files(tmp_path)))
    assert told(capsys) == (
        "Judge on it:  visllama evaluate weights=RUN/weights 'evaluation=[vqav2]' evaluation.vqav2.split=val"
    )
    run(*call(tmp_path, *files(tmp_path, "train2014")))
    command = told(capsys)
    assert command.startswith("Train on it:  visllama train stage=finetune init_from=RUN/weights data=shards ")
    cfg = compose_config("train", *shlex.split(command.partition(" train ")[2]), f"paths.data={tmp_path}/data")
    assert cfg.data.sources.vqa.path == f"{tmp_path}/data/vqa/train" and list(cfg.evaluation) == ["vqav2"]


def told(capsys) -> str:
    return capsys.readouterr().out.rstrip().splitlines()[-1]


def test_an_image_keeps_its_id(run, tmp_path):
    out = run(*call(tmp_path, *files(tmp_path)))
    source = ShardSource("val", None, str(out / "val"))
    assert [source[i]["image_id"] for i in range(2)] == [42, 7]


def test_okvqa_has_the_same_layout_under_other_names(run, tmp_path, capsys):
    questions, annotations = files(tmp_path)
    renamed = (
        put(tmp_path / "OpenEnded_mscoco_val2014_questions.json", questions.read_bytes()),
        put(tmp_path / "mscoco_val2014_annotations.json", annotations.read_bytes()),
    )
    out = run("source=okvqa", *call(tmp_path, *renamed)[1:])
    assert len(read(out / "val")) == 2
    assert told(capsys).endswith("'evaluation=[okvqa]' evaluation.okvqa.split=val")
