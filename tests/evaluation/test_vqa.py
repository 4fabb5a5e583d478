"""VQA accuracy: the official numbers, with the official quirks; and every way of joining answers to the wrong question."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.support.commands import evaluate
from visllama.errors import ConfigError
from visllama.evaluation.report import vqa_table
from visllama.evaluation.vqa import MODES, Asked, accuracy, read_answers, read_questions, score_answers
from visllama.evaluation.vqa_text import normalise


def turn_by_turn(prediction: str, answers: list[str]) -> Fraction:
    """Do as the rule is told: leave each annotator out by his place."""
    turns = [[*answers[:i], *answers[i + 1 :]].count(prediction) for i in range(len(answers))]
    return sum((min(Fraction(others, 3), Fraction(1)) for others in turns), Fraction(0)) / len(answers)


@pytest.mark.parametrize(
    ("matches", "expected"),
    [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1), (9, 1), (10, 1)],
)
def test_matches_among_ten(matches, expected):
    """Two who agree: left out himself, each sees one other (1/3); the eight see both (2/3): (2/3 + 16/3) / 10 = 0.6."""
    answers = ["cat"] * matches + ["dog"] * (10 - matches)
    for mode in MODES.values():
        assert accuracy("cat", answers, mode) == expected == float(turn_by_turn("cat", answers))


@pytest.mark.parametrize("num", [1, 2, 3, 4])
def test_few_annotators_give_the_share_who_agree(num):
    """One is an exact match. With four the official rule gives the same, so nothing jumps between three and four."""
    for matches in range(num + 1):
        answers = ["cat"] * matches + ["dog"] * (num - matches)
        assert accuracy("cat", answers) == pytest.approx(matches / num, abs=1e-15)
    assert turn_by_turn("cat", ["cat", "dog", "dog", "dog"]) == Fraction(1, 4)


ANSWERS = st.lists(
    st.sampled_from(["yes", "Yes", "no", "a dog", "dog.", "Dog", "two", "2", ""]), min_size=4, max_size=12
)


@given(ANSWERS, st.randoms(use_true_random=False), st.sampled_from(list(MODES.values())))
def test_annotators_in_any_order(answers, random, mode):
    shuffled = answers.copy()
    random.shuffle(shuffled)
    for prediction in set(answers):
        value = accuracy(prediction, answers, mode)
        assert 0 <= value <= 1 and value == accuracy(prediction, shuffled, mode)


@given(ANSWERS)
def test_equals_the_rule_turn_by_turn(answers):
    plain = [normalise(answer) for answer in answers]
    for prediction in set(plain):
        assert accuracy(prediction, answers, "normalise_all") == pytest.approx(float(turn_by_turn(prediction, plain)))


def test_modes_differ_only_where_all_annotators_agree():
    """Ten say "yes": officially "Yes." is then compared as it stands, and is wrong."""
    same, mixed = ["yes"] * 10, ["yes"] * 9 + ["no"]
    assert accuracy("Yes.", same) == 0 and accuracy("Yes.", same, "normalise_all") == 1
    assert accuracy("Yes.", mixed) == 1 and accuracy("Yes.", mixed, "normalise_all") == 1
    assert accuracy(" yes\n", same) == 1 == accuracy("yes", ["yes\n", "\tyes", "yes "])
    assert accuracy("yes", ["Yes.", "Yes.\n"]) == 0  # they agree
    assert accuracy("none", ["0"] * 10) == 0 and accuracy("none", ["0"] * 9 + ["1"]) == 1
    assert accuracy("A", ["B"] * 9 + ["the"]) == 0.3  # both vanish
    with pytest.raises(ValueError, match="mode=strict: choose from official, normalise_all"):
        accuracy("a", ["a"], "strict")


# ------------------------------------------------------------------------------------------------------- scoring

ASKED = {
    "9": Asked("How many?", ["2"] * 7 + ["3"] * 3, "2", {"answer_type": "number", "question_type": "how many"}),
    "10": Asked("What is it?", ["cat"] * 2 + ["dog"] * 8, "1", {"answer_type": "other", "question_type": "what is"}),
    "11": Asked("Is it red?", ["yes"] * 10, "1", {"answer_type": "yes/no", "question_type": "is it"}),
    "12": Asked("Is it a dog?", ["no"] * 9 + ["yes"], "2", {"answer_type": "yes/no", "question_type": "is it"}),
}  # fmt: skip
SAID = {"9": "three", "10": "Cat", "11": "Yes", "12": "yes"}
"""0.9; 0.6; 0 or 1 by the mode; 0.3."""


def test_scores_of_a_hand_worked_set():
    scores = score_answers(SAID, ASKED)
    assert scores.ids == ["10", "11", "12", "9"] and scores.images == ["1", "1", "2", "2"]
    assert scores.per_question["accuracy"].tolist() == [0.6, 0, 0.3, 0.9]
    assert scores.values == pytest.approx({"accuracy": 45, "accuracy_normalise_all": 70})
    assert scores.by_type["answer_type"] == pytest.approx({"number": 90, "other": 60, "yes/no": 15})
    assert scores.by_type["question_type"] == pytest.approx({"how many": 90, "is it": 15, "what is": 60})
    assert scores.counts == {
        "answer_type": {"number": 1, "other": 1, "yes/no": 2},
        "question_type": {"how many": 1, "is it": 2, "what is": 1},
    }
    by_type = scores.intervals_by_type()
    assert by_type["question_type"] == {"is it": [0, 30]} and by_type["answer_type"] == {"yes/no": [0, 30]}, (
        "of questions on one image nothing can be drawn again"
    )
    assert score_answers(dict(reversed(SAID.items())), dict(reversed(ASKED.items()))).values == scores.values


def test_our_own_world_has_one_answer_and_its_own_types():
    asked = {"a": Asked("?", ["red"], "1", {"kind": "colour"}), "b": Asked("?", ["blue"], "1", {})}
    scores = score_answers({"a": "red", "b": "Blue"}, asked)
    assert scores.values == {"accuracy": 50, "accuracy_normalise_all": 100}
    assert scores.by_type == {"kind": {"colour": 100}} and scores.counts == {"kind": {"colour": 1}}


def test_questions_must_be_the_same():
    with pytest.raises(ConfigError, match=r"6 predictions answer questions that are not asked, first u0, .* u4$"):
        score_answers(SAID | {f"u{i}": "x" for i in range(6)}, ASKED)
    with pytest.raises(ConfigError, match="3 questions have no prediction, first 11, 12, 9"):
        score_answers({"10": "x"}, ASKED)
    with pytest.raises(ConfigError, match="1 questions have no answers to score by, first 10"):
        score_answers(SAID, ASKED | {"10": ASKED["10"]._replace(answers=[])})
    with pytest.raises(ConfigError, match="there are no questions"):
        score_answers({}, {})


# --------------------------------------------------------------------------------------------------------- files


def official(asked: dict[str, Asked], with_ids: bool = True) -> tuple[dict, dict]:
    """Write questions and annotations as VQAv2 does; the annotations the other way round."""
    questions = [
        {"image_id": int(a.image), "question": a.question, "question_id": int(key)} for key, a in asked.items()
    ]
    annotations = [
        {"question_id": int(key), "image_id": int(a.image), "multiple_choice_answer": a.answers[0], **a.types,
         "answers": [{"answer": text, "answer_confidence": "yes"} | ({"answer_id": i + 1} if with_ids else {})
                     for i, text in enumerate(a.answers)]}
        for key, a in reversed(asked.items())
    ]  # fmt: skip
    return {"info": {}, "questions": questions}, {"info": {}, "annotations": annotations}


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: object) -> Path:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return tmp_path / name

    return write


@pytest.mark.parametrize("with_ids", [True, False])
def test_official_files_with_and_without_answer_id(write, with_ids):
    """VizWiz has no answer_id; the official script then leaves out all who said the same, and scores far too low."""
    questions, annotations = official(ASKED, with_ids)
    asked = read_questions(write("q.json", questions), write("a.json", annotations))
    assert asked == ASKED
    assert score_answers(SAID, asked).per_question["accuracy"].tolist() == [0.6, 0, 0.3, 0.9]


def test_ids_are_numbers_or_strings_and_types_may_be_absent(write):
    questions = {"questions": [{"question_id": "7", "image_id": "x.jpg", "question": "?"}]}
    annotations = {"annotations": [{"question_id": 7, "answers": [{"answer": "a"}]}]}
    assert read_questions(write("q.json", questions), write("a.json", annotations)) == {
        "7": Asked("?", ["a"], "x.jpg", {})
    }


def test_answers_in_every_layout(write):
    assert read_answers(write("m.json", {"7": "a", "8": ""})) == {"7": "a", "8": ""}
    rows = [{"question_id": 7, "answer": "a"}, {"question_id": "x", "answer": "b"}]
    assert read_answers(write("r.json", rows)) == {"7": "a", "x": "b"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            [{"question_id": 1, "answer": "a"}, {"question_id": "1", "answer": "a"}],
            "ids stand more than once in .*first 1",
        ),
        ('{"1": "a", "1": "b"}', "more than once: 1"),
        ([{"image_id": 1, "caption": "a"}], r"p\.json: a row without question_id and answer: .*caption"),
        ([3], "a row without question_id and answer: 3"),
        ({"1": ["a"]}, "the answer to question 1 is no text"),
        ([{"question_id": 1, "answer": 2}], "the answer to question 1 is no text: 2"),
        ("3", "expected VQA results"),
        ("{", "no valid JSON"),
    ],
)
def test_bad_answers_are_refused(write, content, says):
    with pytest.raises(ConfigError, match=says):
        read_answers(write("p.json", content))


def test_bad_questions_and_annotations_are_refused(write):
    questions, annotations = official(ASKED)
    good = write("q.json", questions), write("a.json", annotations)

    def says(message: str, q: object = questions, a: object = annotations) -> None:
        with pytest.raises(ConfigError, match=message):
            read_questions(write("wrong_q.json", q), write("wrong_a.json", a))

    with pytest.raises(
        ConfigError, match=r"a\.json: expected VQA questions .*'image_id', 'question'.*found the keys info, annotations"
    ):
        read_questions(good[1], good[0])
    rows, marked = questions["questions"], annotations["annotations"]
    says("found list", q=rows)
    says(r"wrong_q\.json: a row without question_id and image_id and question", q={"questions": [{"question_id": 1}]})
    says(r"wrong_a\.json: a row without question_id and answers", a={"annotations": [{"question_id": 1}]})
    says(r"1 question ids stand more than once in .*wrong_q\.json, first 9", q={"questions": [*rows, rows[0]]})
    says(r"1 question ids stand more than once in .*wrong_a\.json, first 12", a={"annotations": [*marked, marked[0]]})
    says(r"2 questions of .* have no annotation in .*first 11, 12", a={"annotations": marked[2:]})
    says(r"1 annotations of .* have no question in .*first 9", q={"questions": rows[1:]})
    says(
        r"1 questions of .* are about another image in .*first 9",
        q={"questions": [rows[0] | {"image_id": 5}, *rows[1:]]},
    )
    for answers in ([], "cat", ["cat"], [{"answer": 3}], [{}]):
        says(
            r"question 12: expected answers \[{'answer'}\]",
            a={"annotations": [marked[0] | {"answers": answers}, *marked[1:]]},
        )


# ------------------------------------------------------------------------------------------------ table and verb

EVALUATION = {
    "task": "vqa", "split": "test", "n": 400, "metrics": {"accuracy": 66.5, "accuracy_normalise_all": 67.0},
    "intervals": {"accuracy": [62.0, 71.0]}, "by_type": {"answer_type": {"yes/no": 81.2, "[what color is the]": 50.0}},
    "controls": {"shuffled_images": {"accuracy": 31.0, "by_type": {"answer_type": {"yes/no": 55.0}}}, "blank_images": {"accuracy": 30.0}},
}  # fmt: skip


def shown(evaluation: dict, name: str = "scenes_vqa") -> list[str]:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(vqa_table(name, evaluation))
    return console.export_text().splitlines()


def cells(lines: list[str], word: str) -> list[str]:
    return [cell.strip() for cell in next(line for line in lines if word in line).strip("│").split("│")]


def test_table_fits_80_columns_and_says_its_scale():
    lines = shown(EVALUATION | {"counts": {"answer_type": {"yes/no": 150}}})
    assert max(map(len, lines)) <= 80 and "scenes_vqa: test, n = 400 (VQA accuracy, 0-100)" in lines[0]
    assert cells(lines, "│ accuracy  ") == ["accuracy", "400", "66.5", "62.0 - 71.0", "31.0", "30.0"]
    assert cells(lines, "normalise") == ["accuracy normalise all", "400", "67.0", "", "", ""]
    assert cells(lines, "yes/no") == ["yes/no", "150", "81.2", "", "55.0", ""]
    assert cells(lines, "[what") == ["[what color is the]", "", "50.0", "", "", ""]


def test_table_of_what_little_was_measured_and_of_many_types():
    bare = shown({"n": 2, "metrics": {"accuracy": 50.0}}, "predictions")
    assert "given answers, n = 2" in bare[0] and "images" not in "".join(bare)
    many = shown(
        {"n": 65, "metrics": {"accuracy": 1.0}, "by_type": {"question_type": {f"what {i}": 1.0 for i in range(65)}}}
    )
    assert "question_type: 65, in metrics.json" in many[-1] and "what 1" not in "".join(many)


def test_verb_scores_answers(write, tmp_path):
    questions, annotations = official(ASKED)
    write("q.json", questions), write("a.json", annotations)
    write("p.json", [{"question_id": int(key), "answer": answer} for key, answer in SAID.items()])
    files = "predictions=p.json", "references=a.json", "questions=q.json"
    ended = evaluate(*files, "hydra.run.dir=out", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    result = written["evaluations"]["predictions"]
    assert result["task"] == "vqa" and result["n"] == 4
    assert result["metrics"] == pytest.approx({"accuracy": 45, "accuracy_normalise_all": 70})
    assert result["intervals"]["accuracy"] == pytest.approx([30, 60])  # of two images: 30 each, or 60 each
    assert result["by_type"]["answer_type"]["yes/no"] == pytest.approx(15)
    assert result["counts"]["answer_type"]["yes/no"] == 2 and written["provenance"]["questions"] == "q.json"
    assert "45.0" in ended.stdout and "(VQA accuracy, 0-100)" in ended.stdout and "Wrote" in ended.stdout
    table = ended.stdout.partition("Wrote")[0]  # the path behind it is as long as it is
    assert max(map(len, table.splitlines())) <= 80
    swapped = evaluate("predictions=p.json", "references=q.json", "questions=a.json", cwd=tmp_path)
    assert swapped.returncode == 2 and "a.json: expected VQA questions" in swapped.stderr
    assert "Traceback" not in swapped.stderr


def test_scoring_answers_imports_no_model():
    code = "import sys, visllama.evaluation.vqa; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'lightning')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_all_accuracies_are_doubles_in_the_order_of_ids():
    scores = score_answers(SAID, ASKED)
    values = scores.per_question["accuracy"]
    assert values.dtype == np.float64 and len(values) == len(scores.ids) == len(scores.images)
