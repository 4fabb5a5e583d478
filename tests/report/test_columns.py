"""Which figures a table shows."""

from __future__ import annotations

import pytest

from tests.support.compared_runs import caption_evaluation, write_run
from visllama.errors import ConfigError
from visllama.report.columns import Column, find_columns, headers
from visllama.report.judged_run import read_runs

SCORES = {"BLEU-1": 0.7, "BLEU-4": 0.3, "METEOR": 0.25, "ROUGE-L": 0.5, "CIDEr": 1.13}


@pytest.fixture
def runs(tmp_path):
    """Two runs: captions of two data sets with a validation loss, and answers."""
    coco, scenes = caption_evaluation(SCORES), caption_evaluation({"CIDEr": 4.0})
    vqa = {"task": "vqa", "n": 9, "metrics": {"accuracy": 61.5, "accuracy_normalise_all": 62.0}}
    write_run(tmp_path / "a", {"coco": coco, "scenes": scenes}, **{"val/loss": 1.25})
    write_run(tmp_path / "b", {"vqa": vqa})
    return read_runs([tmp_path / "a", tmp_path / "b"])


def names(columns):
    return [column.name for column in columns]


def test_the_usual_ones(runs):
    usual = ["coco/BLEU-4", "coco/METEOR", "coco/ROUGE-L", "coco/CIDEr", "scenes/CIDEr", "vqa/accuracy"]
    assert names(find_columns(runs, None, None)) == usual
    assert names(find_columns(runs, None, ["vqa"])) == ["vqa/accuracy"]


def test_a_run_that_was_not_judged_has_its_loss(tmp_path):
    write_run(tmp_path, {}, **{"val/loss": 1.25})
    column = find_columns(read_runs([tmp_path]), None, None)[0]
    assert column == Column(None, "val/loss", is_higher_better=False) and column.show(1.25) == "1.250"
    write_run(tmp_path, {})
    with pytest.raises(ConfigError, match="none has a figure"):
        find_columns(read_runs([tmp_path]), None, None)


def test_those_that_are_named(runs):
    wanted = ["BLEU-1", "scenes/CIDEr", "val/loss", "accuracy_normalise_all"]
    assert names(find_columns(runs, wanted, None)) == ["coco/BLEU-1", *wanted[1:3], "vqa/accuracy_normalise_all"]
    assert names(find_columns(runs, ["CIDEr"], ["scenes"])) == ["scenes/CIDEr"]


def test_of_several_evaluations_the_one_that_all_runs_have(tmp_path):
    """Of a sweep the best job is judged on test too."""
    val, test = caption_evaluation({"CIDEr": 1.0}, split="val"), caption_evaluation({"CIDEr": 2.0})
    write_run(tmp_path / "best", {"scenes_val": val, "scenes": test})
    write_run(tmp_path / "other", {"scenes_val": val})
    runs = read_runs([tmp_path / "best", tmp_path / "other"])
    assert names(find_columns(runs, ["CIDEr"], None)) == ["scenes_val/CIDEr"]
    assert names(find_columns(runs, ["CIDEr"], ["scenes"])) == ["scenes/CIDEr"]


@pytest.mark.parametrize(
    ("wanted", "evaluations", "says"),
    [
        (["CIDEr"], None, "columns=CIDEr: several evaluations have it: choose of coco/CIDEr, scenes/CIDEr"),
        (["SPICE"], None, "columns=SPICE: no run has this figure: there is coco/BLEU-1"),
        (None, ["coco_karpathy"], "evaluations=coco_karpathy: no run has it: there is coco, scenes, vqa"),
    ],
)
def test_what_is_not_there_is_refused_with_what_there_is(runs, wanted, evaluations, says):
    with pytest.raises(ConfigError, match=says):
        find_columns(runs, wanted, evaluations)


def test_captions_are_printed_larger_than_files_hold_them_and_answers_are_not(runs):
    cider, accuracy = find_columns(runs, ["coco/CIDEr", "accuracy"], None)
    assert (cider.value_of(runs[0]), cider.show(1.13)) == (1.13, "113.0") and cider.value_of(runs[1]) is None
    assert (accuracy.value_of(runs[1]), accuracy.show(61.5)) == (61.5, "61.5")


def test_headers(runs):
    assert headers(find_columns(runs, ["coco/CIDEr", "BLEU-4", "val/loss"], None)) == ["CIDEr", "BLEU-4", "val/loss"]
    assert headers(find_columns(runs, ["coco/CIDEr", "accuracy"], None)) == ["coco/CIDEr", "vqa/accuracy"]
