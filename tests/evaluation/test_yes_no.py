"""Yes/no questions: POPE's rule, precision and its like by hand, intervals over images, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from visllama.errors import ConfigError
from visllama.evaluation.per_image import read_scores, write_answer_scores
from visllama.evaluation.statistics import bootstrap_intervals
from visllama.evaluation.vqa import Asked, score_yes_no
from visllama.evaluation.yes_no import as_yes_or_no, counts_of_images, yes_no_counts, yes_no_metrics

ASKED = {
    key: Asked("Is there a dog?", [answer], image, {"type": kind})
    for key, answer, image, kind in [
        ("r/1", "yes", "1", "random"), ("r/2", "no", "1", "random"), ("r/3", "yes", "2", "random"),
        ("p/1", "yes", "2", "popular"), ("p/2", "no", "3", "popular"), ("p/3", "no", "3", "popular"),
    ]
}  # fmt: skip
SAID = {
    "r/1": "Yes, there is a dog.",  # right
    "r/2": "There is a dog",  # says neither word: yes, which is wrong
    "r/3": "There is not any. Yes",  # the first sentence alone: no, which is wrong
    "p/1": "yes",  # right
    "p/2": "No",  # right
    "p/3": "Yes",  # wrong
}


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("yes", "yes"), ("No", "no"), ("no.", "no"), ("No, there is none", "no"), ("It is not there", "no"),
        ("Yes. No", "yes"), ("", "yes"), ("nothing", "yes"), ("NO", "yes"), ("a dog", "yes"),
    ],
)  # fmt: skip
def test_an_answer_is_read_as_pope_reads_it(answer, read):
    """`evaluate.py` of github.com/AoiDragon/POPE looks for No, no and not in the first sentence; NO is none of them."""
    assert as_yes_or_no(answer) == read


def test_metrics_of_a_hand_worked_set():
    """2 yes are right, 2 wrong, 1 no is wrong, 1 right: precision 2/4, recall 2/3, F1 4/7, yes 4/6."""
    scores = score_yes_no(SAID, ASKED)
    expected = {"accuracy": 50, "precision": 50, "recall": 200 / 3, "F1": 400 / 7, "yes_share": 400 / 6}
    assert {name: scores.values[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    of_images = {name: metric.value for name, metric in scores.metrics.items()}
    assert of_images == pytest.approx(scores.values, rel=1e-12), "the order of the sums alone differs"
    assert scores.counts == {"type": {"popular": 3, "random": 3}}
    assert scores.by_type["type"]["random"] == pytest.approx(
        {"accuracy": 100 / 3, "precision": 50, "recall": 50, "F1": 50, "yes_share": 200 / 3}, rel=1e-12
    )
    assert scores.by_type["type"]["popular"]["recall"] == 100
    assert set(scores.intervals_by_type()["type"]["random"]) == set(expected)


def test_intervals_draw_images_and_not_questions():
    """All questions on an image are drawn together: of images that each have the same counts no draw differs."""
    counts = np.array([yes_no_counts("yes", "yes"), yes_no_counts("yes", "no")] * 20)
    together = yes_no_metrics(counts_of_images(counts, [str(number // 2) for number in range(40)]))
    assert bootstrap_intervals(together)["precision"] == [50, 50]
    low, high = bootstrap_intervals(yes_no_metrics(counts))["precision"]
    assert low < 45 and high > 55, "the standard error of a share of 40 is 7.9"


def test_where_nothing_can_be_shared_out_a_share_is_zero():
    """As scikit-learn has it, and as a table can hold: a model that never says yes has no precision."""
    values = {name: metric.value for name, metric in yes_no_metrics(np.array([yes_no_counts("no", "no")] * 3)).items()}
    assert values == {"precision": 0, "recall": 0, "F1": 0, "yes_share": 0}


def test_scores_are_read_back_as_they_were_written(tmp_path):
    scores = score_yes_no(SAID, ASKED)
    write_answer_scores(tmp_path / "scores.jsonl", {key: key for key in scores.ids}, scores)
    again = read_scores(tmp_path / "scores.jsonl")
    assert {name: metric.value for name, metric in again.metrics.items()} == pytest.approx(scores.values, rel=1e-12)
    assert bootstrap_intervals(again.metrics) == bootstrap_intervals(scores.metrics)


def test_other_answers_are_refused_with_the_first_five():
    colors = {f"q{number}": Asked("Which?", ["red"], "1", {}) for number in range(7)}
    with pytest.raises(
        ConfigError, match=r"7 questions have another answer than yes or no, .*first q0, q1, q2, q3, q4$"
    ):
        score_yes_no({**SAID, **dict.fromkeys(colors, "no")}, {**ASKED, **colors})
    torn = {"q": Asked("Is it?", ["yes", "no"], "1", {})}
    with pytest.raises(ConfigError, match=r"1 questions .* first q$"):
        score_yes_no({"q": "no"}, torn)
