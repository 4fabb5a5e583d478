"""The scorer, and the traps around it: every way in which captions could be scored against the wrong image."""

from __future__ import annotations

import pytest

from tests.support.said_captions import GOOD, NASTY, REFERENCES
from visllama.errors import ConfigError
from visllama.evaluation.captions import score_captions

BAD = {"one": "a calico cat and a white cat are lying together.", "two": "a black dog wearing a hat looks at the camera as a tabby walks in the background."}  # fmt: skip


@pytest.mark.parametrize(
    ("captions", "published"),
    [
        (GOOD, {"BLEU-1": 0.6667, "BLEU-2": 0.4899, "BLEU-3": 0.3469, "BLEU-4": 0.0, "ROUGE-L": 0.4280, "CIDEr": 0.5637, "METEOR": 0.3444}),
        (BAD, {"BLEU-1": 0.4815, "BLEU-2": 0.2404, "BLEU-3": 0.1359, "BLEU-4": 0.0, "ROUGE-L": 0.3121, "CIDEr": 0.2790}),
    ],
)  # fmt: skip
def test_published_scores(captions, published):
    """The clipscore repository publishes these for two photos with a good and a bad caption each."""
    metrics = ("BLEU", "ROUGE-L", "CIDEr", *(["METEOR"] if "METEOR" in published else []))
    scores = score_captions(captions, REFERENCES, metrics).values
    for metric, value in published.items():
        assert round(scores[metric], 4) == value, metric


def test_scores_with_nasty_captions_stand_at_their_images():
    references = {str(i): [f"number {i} is here", f"here is number {i}"] for i in range(len(NASTY))}
    scores = score_captions({str(i): f"number {i} is here {text}" for i, text in enumerate(NASTY)}, references)
    swapped = score_captions({str(i): text for i, text in enumerate(NASTY)}, references, ("CIDEr",))
    assert scores.ids == sorted(references) and (scores.metrics["CIDEr"].per_image > 1).all()
    assert set(scores.metrics) == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"}
    assert swapped.values["CIDEr"] < 0.1


def test_all_captions_empty_scores_zero():
    assert score_captions({"one": "", "two": " "}, REFERENCES, ("CIDEr", "ROUGE-L")).values == {
        "CIDEr": 0.0,
        "ROUGE-L": 0.0,
    }


def test_order_of_images_changes_nothing():
    backwards = dict(reversed(list(GOOD.items())))
    fast = ("BLEU", "ROUGE-L", "CIDEr")
    assert score_captions(backwards, REFERENCES, fast).values == score_captions(GOOD, REFERENCES, fast).values


def test_images_must_be_the_same():
    with pytest.raises(ConfigError, match="2 predictions are of images without references, first a, b"):
        score_captions(GOOD | {"a": "x", "b": "y"}, REFERENCES)
    with pytest.raises(ConfigError, match="1 images have no prediction, first two"):
        score_captions({"one": "x"}, REFERENCES)
    with pytest.raises(ConfigError, match="no references"):
        score_captions({}, {})


def test_an_unknown_metric_is_refused():
    with pytest.raises(ConfigError, match="metrics=Bleu, SPICE: choose from BLEU, METEOR, ROUGE-L, CIDEr"):
        score_captions(GOOD, REFERENCES, ("CIDEr", "Bleu", "SPICE"))


def test_swapped_images():
    assert score_captions({"one": GOOD["two"], "two": GOOD["one"]}, REFERENCES, ("CIDEr",)).values["CIDEr"] < 0.2
