"""Scores as figures and as the rows of a table."""

from __future__ import annotations

from visllama.tracking.results import SCORE_COLUMNS, flat_scores, score_rows


def test_scores_have_names_that_say_of_what_they_are():
    evaluations = {
        "coco": {"metrics": {"CIDEr": 1.13}, "controls": {"blank_images": {"CIDEr": 0.1}}},
        "vqa": {"metrics": {"accuracy": 63.0}},
    }
    assert flat_scores(evaluations) == {"coco/CIDEr": 1.13, "coco/blank_images/CIDEr": 0.1, "vqa/accuracy": 63.0}


def test_each_score_is_a_row_with_its_interval_and_each_control_too():
    coco = {
        "split": "test",
        "n": 20,
        "metrics": {"CIDEr": 1.13},
        "intervals": {"CIDEr": [1.0, 1.2]},
        "controls": {"blank_images": {"CIDEr": 0.1}},
    }
    first, second = (dict(zip(SCORE_COLUMNS, row, strict=True)) for row in score_rows({"coco": coco}))
    about = {"evaluation": "coco", "split": "test", "n": 20, "metric": "CIDEr"}
    assert first == about | {"pictures": "true", "score": 1.13, "low": 1.0, "high": 1.2}
    assert second == about | {"pictures": "blank_images", "score": 0.1, "low": None, "high": None}


def test_accuracies_by_type_of_a_control_are_no_score_of_it():
    """They stay in `metrics.json`: a tracker takes numbers."""
    vqa = {"metrics": {"accuracy": 63.0}, "controls": {"blank": {"accuracy": 40.0, "by_type": {"answer_type": {}}}}}
    assert flat_scores({"vqa": vqa}) == {"vqa/accuracy": 63.0, "vqa/blank/accuracy": 40.0}
    assert [row[3:6] for row in score_rows({"vqa": vqa})] == [["true", "accuracy", 63.0], ["blank", "accuracy", 40.0]]
