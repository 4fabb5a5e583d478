"""`scores.jsonl`: what is read of it gives the same metrics, intervals and differences as what was scored."""

import json

import numpy as np
import pytest

from tests.support.said_captions import GOOD, REFERENCES
from visllama.errors import ConfigError
from visllama.evaluation.captions import meteor_metric, score_captions
from visllama.evaluation.per_image import read_scores, write_answer_scores, write_caption_scores
from visllama.evaluation.statistics import bootstrap_intervals
from visllama.evaluation.vqa import Asked, score_answers


def test_captions_read_back_score_the_same(tmp_path):
    scores = score_captions(GOOD, REFERENCES, ("BLEU", "ROUGE-L", "CIDEr"))
    counts = np.random.default_rng(0).integers(1, 9, (2, 23)).astype(float)  # its Java program takes ten seconds
    scores.metrics["METEOR"] = meteor_metric(counts)
    path = tmp_path / "scores.jsonl"
    write_caption_scores(path, {"one": "one", "two": 2}, scores)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["image_id"] for row in rows] == ["one", 2] and len(rows[0]["METEOR"]) == 23
    found = read_scores(path)
    assert found.ids == ["2", "one"]
    assert {name: metric.value for name, metric in found.metrics.items()} == pytest.approx(scores.values, rel=1e-12)
    per_image = scores.metrics["BLEU-2"].per_image
    assert found.per_row["BLEU-2"].tolist() == pytest.approx(per_image[::-1].tolist(), rel=1e-12)
    assert set(bootstrap_intervals(found.metrics)) == set(scores.metrics)


QUESTIONS = {
    "1": Asked("what?", ["red"] * 10, "a", {}),
    "2": Asked("how many?", ["2"] * 5 + ["3"] * 5, "a", {}),
    "3": Asked("is it?", ["yes"] * 10, "b", {}),
}


def test_answers_read_back_are_grouped_by_image(tmp_path):
    scores = score_answers({"1": "red", "2": "4", "3": "yes"}, QUESTIONS)
    write_answer_scores(tmp_path / "scores.jsonl", {"1": 1, "2": 2, "3": 3}, scores)
    found = read_scores(tmp_path / "scores.jsonl")
    assert found.ids == ["1", "2", "3"] and found.metrics["accuracy"].terms.shape == (2, 2)
    assert found.metrics["accuracy"].value == pytest.approx(scores.values["accuracy"]) == pytest.approx(200 / 3)
    assert np.array_equal(found.per_row["accuracy"], [100, 0, 100])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no scores"),
        ("{\n", "line 1"),
        ('{"CIDEr": 1}\n', "line 1: no scores of an image"),
        ('{"image_id": 1, "CIDEr": 1}\n{"image_id": "1", "CIDEr": 1}\n', "id 1 comes twice"),
        ('{"image_id": 1, "CIDEr": 1}\n{"image_id": 2, "BLEU": 1}\n', "do not hold the same scores"),
        ('{"image_id": 1, "BLEU": [1, 2]}\n', "do not hold the same scores"),
        ('{"image_id": 1, "CIDEr": "high"}\n', "do not hold the same scores"),
    ],
)
def test_what_is_no_scores_is_refused(tmp_path, content, says):
    (tmp_path / "scores.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=says):
        read_scores(tmp_path / "scores.jsonl")
