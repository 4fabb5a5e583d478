"""Files of questions with their answers, of whatever layout: grouped by image, ids once, splits by name."""

from __future__ import annotations

import pytest

from tests.prepare.made import picture, put, read, skipped
from visllama.data.shards.source import ShardSource
from visllama.errors import ConfigError
from visllama.prepare.questions import QuestionRow, question_row
from visllama.prepare.raw import Skipped


def rows(*questions: tuple[int, str, list]) -> list[dict]:
    return [
        {"question_id": id, "image_id": image, "question": f"{id}?", "answers": said} for id, image, said in questions
    ]


def call(tmp_path, data: list[dict], name: str = "TextVQA_0.5.1_val.json") -> tuple[str, ...]:
    for number, image in enumerate("ab"):
        put(tmp_path / "images" / f"{image}.jpg", picture(number))
    file = put(tmp_path / name, {"data": data})
    return "source=textvqa", f"images={tmp_path}/images", f"annotations={file}"


def test_an_image_is_one_record_wherever_its_questions_stand(run, tmp_path):
    out = run(*call(tmp_path, rows((3, "b", ["x"]), (1, "a", ["y", "z", "z"]), (2, "b", ["w"]))))
    source = ShardSource("val", None, str(out / "val"))
    assert [source[i]["image_id"] for i in range(2)] == ["b", "a"] and source[0]["image"] == picture(1)
    assert [question["id"] for question in source[0]["questions"]] == [3, 2]
    assert source[1]["questions"] == [{"question": "1?", "answers": ["y", "z", "z"], "answer": "z", "id": 1}]


def test_an_id_that_comes_twice_is_left_out_and_counted(run, tmp_path):
    found = call(tmp_path, rows((1, "a", ["x"]), (1, "b", ["y"])))
    with pytest.raises(ConfigError, match=r"1 of 2 records .* are bad"):
        run(*found)
    out = run(*found, "max_bad_fraction=0.5")
    assert [entry["reason"] for entry in skipped(out / "val")] == ["duplicate"]
    assert list(read(out / "val")) == ["00000000"]


def test_a_name_that_tells_no_split_asks_for_one(run, tmp_path):
    found = call(tmp_path, rows((1, "a", ["x"])), "questions.json")
    with pytest.raises(
        ConfigError, match="its file name does not show which split it is: give one of split=train, split=val"
    ):
        run(*found)
    assert (run(*found, "split=test") / "test" / "manifest.json").is_file()


def test_an_annotator_who_wrote_nothing_stays_one_of_ten():
    """Ten annotators make the score: nine would be another one."""
    row = question_row("here", "a", ("a.jpg",), 1, "What?", ["", *["no"] * 9])
    assert isinstance(row, QuestionRow)
    assert row.question["answers"] == ["", *["no"] * 9] and row.question["answer"] == "no"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ((None, 1, "What?", ["a"]), "no image"),
        (("a", None, "What?", ["a"]), "id"),
        (("a", True, "What?", ["a"]), "id"),
        (("a", 1, " ", ["a"]), "no question"),
        (("a", 1, "What?", []), "no answer"),
        (("a", 1, "What?", ["a", 3]), "no answer"),
        (("a", 1, "What?", "a"), "no answer"),
    ],
)
def test_what_is_no_question_is_left_out_by_its_reason(given, reason):
    image, question_id, question, answers = given
    row = question_row("here", image, ("a.jpg",), question_id, question, answers)
    assert isinstance(row, Skipped) and (row.where, row.reason) == ("here", reason)
