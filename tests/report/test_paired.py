"""Two runs, image by image."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.support.compared_runs import asked_run, captioned_run
from visllama.errors import ConfigError
from visllama.report.judged_run import read_runs
from visllama.report.paired import Pair, as_json, compare, most_changed, read_pair, shared_evaluations

CIDER = [0.5, 1.5, 0.25, 2.0, 1.0]
IMAGES = ["i1", "i1", "i2", "i3", "i3"]


def compared(first, second, pair=None, mixed=False):
    runs = read_runs([first, second])
    pair = pair or shared_evaluations(*runs, None)[0]
    return compare(read_pair(*runs, pair, mixed), runs[0].name, runs[1].name)


def test_a_run_beside_itself(tmp_path):
    run = captioned_run(tmp_path / "a", CIDER)
    comparison = compared(run, run)
    assert list(comparison.metrics) == ["CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]
    for metric in comparison.metrics.values():
        assert metric.difference == (0.0, [0.0, 0.0], 1.0)
    assert most_changed(comparison, 10, set()) == []


def test_the_difference_is_that_of_the_means(tmp_path):
    """Each image won by 0.1, so every resample gives 0.1; of 2^5 exchanges two are as large, p = 2/32 give or take
    three standard errors of 2000 draws."""
    captioned_run(tmp_path / "a", CIDER)
    captioned_run(tmp_path / "b", np.add(CIDER, 0.1))
    comparison = compared(tmp_path / "a", tmp_path / "b")
    metric = comparison.metrics["CIDEr"]
    assert metric.first == pytest.approx(1.05) and metric.second == pytest.approx(1.15)
    assert metric.difference.value == pytest.approx(0.1) and metric.difference.interval == pytest.approx([0.1, 0.1])
    assert abs(metric.difference.p - 2 / 32) < 3 * np.sqrt(2 / 32 * 30 / 32 / 2000)
    assert (comparison.num_rows, comparison.num_images, comparison.main) == (5, 5, "CIDEr")
    assert comparison.metrics["BLEU-4"].difference.value == 0


def test_the_images_are_matched_by_id_and_not_by_place(tmp_path):
    captioned_run(tmp_path / "a", CIDER, ids=[1, 2, 3, 4, 5])
    captioned_run(tmp_path / "b", CIDER[::-1], ids=[5, 4, 3, 2, 1])
    assert compared(tmp_path / "a", tmp_path / "b").metrics["CIDEr"].difference.p == 1.0


def test_other_images_are_refused_whatever_is_asked_for(tmp_path):
    captioned_run(tmp_path / "a", CIDER, ids=[1, 2, 3, 4, 5])
    captioned_run(tmp_path / "b", CIDER, ids=[1, 2, 3, 4, 6])
    for mixed in (False, True):
        with pytest.raises(ConfigError, match="1 are in a alone, first 5; 1 are in b alone, first 6"):
            compared(tmp_path / "a", tmp_path / "b", mixed=mixed)


def test_what_was_judged_otherwise_is_refused_and_told_where_it_is_asked_for(tmp_path):
    captioned_run(tmp_path / "a", CIDER)
    captioned_run(tmp_path / "b", CIDER, split="val")
    with pytest.raises(ConfigError, match="split: test in a, val in b"):
        compared(tmp_path / "a", tmp_path / "b")
    assert compared(tmp_path / "a", tmp_path / "b", mixed=True).mixed == {"split": {"a": "test", "b": "val"}}


def test_questions_are_compared_by_their_images(tmp_path):
    """Another system's file names the images otherwise, and in another order: the pairs stay pairs."""
    asked_run(tmp_path / "a", [1, 0, 0, 1, 0], IMAGES, ["x"] * 5)
    asked_run(tmp_path / "b", [1, 1, 0, 1, 0], ["9", "9", "8", "7", "7"], ["x"] * 5)
    comparison = compared(tmp_path / "a", tmp_path / "b")
    metric = comparison.metrics["accuracy"]
    assert (metric.first, metric.second, metric.difference.value) == (40, 60, 20)
    assert metric.difference.p == 1.0, "one image alone differs: to exchange it gives a difference as large"
    assert (comparison.num_rows, comparison.num_images) == (5, 3)
    assert [(each.id, each.image, each.difference) for each in most_changed(comparison, 9, set())] == [
        ("q1", "i1", 100)
    ]


@pytest.mark.parametrize("images", [["i1", "i2", "i2", "i3", "i3"], ["i1", "i1", "i1", "i3", "i3"]])
def test_the_same_questions_on_other_images_are_refused(tmp_path, images):
    asked_run(tmp_path / "a", [1, 0, 0, 1, 0], IMAGES, ["x"] * 5)
    asked_run(tmp_path / "b", [1, 0, 0, 1, 0], images, ["x"] * 5)
    with pytest.raises(ConfigError, match="vqa: image ids differ"):
        compared(tmp_path / "a", tmp_path / "b", mixed=True)


def test_images_named_in_another_order_stay_pairs(tmp_path):
    """Every image won 50, so each resample does too; were "9" not "i1" but "i3", some would win 100 and some nothing."""
    asked_run(tmp_path / "a", [0, 0.5, 0, 0.5], ["i1", "i2", "i3", "i4"], ["x"] * 4)
    asked_run(tmp_path / "b", [0.5, 1, 0.5, 1], ["9", "8", "7", "6"], ["x"] * 4)
    assert compared(tmp_path / "a", tmp_path / "b").metrics["accuracy"].difference.interval == [50, 50]


def test_a_metric_that_one_has_alone_is_named(tmp_path):
    captioned_run(tmp_path / "a", CIDER)
    captioned_run(tmp_path / "b", CIDER)
    path = tmp_path / "b" / "evaluations" / "scenes" / "scores.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({key: row[key] for key in ("image_id", "CIDEr")}) + "\n" for row in rows))
    comparison = compared(tmp_path / "a", tmp_path / "b")
    assert list(comparison.metrics) == ["CIDEr"]
    assert comparison.lacking == {"b": ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]}
    assert as_json(comparison, [])["lacking"] == comparison.lacking


def test_scores_that_are_no_numbers_are_refused(tmp_path):
    captioned_run(tmp_path / "a", CIDER)
    path = tmp_path / "a" / "evaluations" / "scenes" / "scores.jsonl"
    path.write_text(path.read_text().replace('"CIDEr": 0.5', '"CIDEr": NaN'))
    with pytest.raises(ConfigError, match="CIDEr is no number"):
        compared(tmp_path / "a", tmp_path / "a")


def test_a_run_without_scores_of_images_is_to_be_judged_again(tmp_path):
    run = captioned_run(tmp_path / "a", CIDER)
    (run / "evaluations" / "scenes" / "scores.jsonl").unlink()
    with pytest.raises(ConfigError, match="judge it again by visllama evaluate"):
        compared(run, run)


class TestEvaluations:
    def test_those_that_both_have(self, tmp_path):
        captioned_run(tmp_path / "a", CIDER)
        runs = read_runs([tmp_path / "a", tmp_path / "a"])
        assert shared_evaluations(*runs, None) == [Pair("scenes", "scenes")]
        with pytest.raises(ConfigError, match="evaluations=coco: a has scenes"):
            shared_evaluations(*runs, ["coco"])

    def test_runs_with_nothing_in_common_are_told_what_each_has(self, tmp_path):
        captioned_run(tmp_path / "a", CIDER)
        asked_run(tmp_path / "b", [1], ["i"], ["x"])
        with pytest.raises(ConfigError, match="they share no evaluation: a has scenes; b has vqa"):
            shared_evaluations(*read_runs([tmp_path / "a", tmp_path / "b"]), None)

    def test_predictions_of_a_file_are_compared_with_what_is_named(self, tmp_path):
        captioned_run(tmp_path / "a", CIDER)
        captioned_run(tmp_path / "b", CIDER)
        metrics = json.loads((tmp_path / "b" / "metrics.json").read_text())
        metrics["evaluations"]["predictions"] = metrics["evaluations"].pop("scenes")
        (tmp_path / "b" / "metrics.json").write_text(json.dumps(metrics))
        (tmp_path / "b" / "evaluations" / "scenes" / "scores.jsonl").rename(tmp_path / "b" / "scores.jsonl")
        pair = shared_evaluations(*read_runs([tmp_path / "a", tmp_path / "b"]), ["scenes"])[0]
        assert pair == Pair("scenes", "predictions") and pair.name == "scenes"
        comparison = compared(tmp_path / "a", tmp_path / "b", pair)
        assert as_json(comparison, [])["names"] == ["scenes", "predictions"]


class TestMostChanged:
    def test_of_many_half_are_won_and_half_lost(self, tmp_path):
        rng = np.random.default_rng(0)
        first = rng.uniform(1, 2, 40)
        change = np.concatenate([np.linspace(0.5, 0.9, 30), -np.linspace(0.1, 0.2, 10)])
        captioned_run(tmp_path / "a", first)
        captioned_run(tmp_path / "b", first + change)
        changed = most_changed(compared(tmp_path / "a", tmp_path / "b"), 8, set())
        differences = [each.difference for each in changed]
        assert sum(difference > 0 for difference in differences) == 4 == sum(value < 0 for value in differences)
        assert differences == sorted(differences, key=lambda value: -abs(value))
        assert max(differences) == pytest.approx(0.9) and min(differences) == pytest.approx(-0.2)

    def test_where_few_are_lost_the_others_fill_the_page(self, tmp_path):
        captioned_run(tmp_path / "a", np.ones(40))
        captioned_run(tmp_path / "b", np.concatenate([[0.5], np.linspace(1.1, 2, 39)]))
        changed = most_changed(compared(tmp_path / "a", tmp_path / "b"), 10, set())
        assert len(changed) == 10 and sum(each.difference < 0 for each in changed) == 1

    def test_of_equal_ones_those_with_a_picture_come_first(self, tmp_path):
        asked_run(tmp_path / "a", [0] * 5, IMAGES, ["x"] * 5)
        asked_run(tmp_path / "b", [1] * 5, IMAGES, ["x"] * 5)
        changed = most_changed(compared(tmp_path / "a", tmp_path / "b"), 2, {"q3", "q4"})
        assert [each.id for each in changed] == ["q3", "q4"]
