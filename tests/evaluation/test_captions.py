"""The scorer, and the traps around it: every way in which captions could be scored against the wrong image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pycocoevalcap.tokenizer import ptbtokenizer

from tests.support.said_captions import GOOD, REFERENCES
from visllama.errors import ConfigError
from visllama.evaluation.caption_files import read_predictions, read_references
from visllama.evaluation.captions import score_captions
from visllama.evaluation.ptb_tokenizer import one_line, tokenise

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
    scores = score_captions(captions, REFERENCES).values
    for metric, value in published.items():
        assert round(scores[metric], 4) == value, metric


NASTY = [
    "a cat\ron a mat",
    "a\u2028dog",
    "\u2029",
    "",
    "   ",
    "🐱🐶",
    "a ||| b",
    "a\x0bb\x0cc\x85d",
    "\n\n",
    '<script>alert("x")</script>',
    "-LRB- ... --",
    "last one",
]


def test_no_separator_shifts_a_caption_to_another_image():
    """Each text stands where it stood, and equals the text tokenised alone."""
    together = tokenise({str(i): [text, f"marker{i}"] for i, text in enumerate(NASTY)})
    for i, text in enumerate(NASTY):
        assert together[str(i)][1] == f"marker{i}"
        if i in (0, 5, 9):  # each costs a start of Java
            assert together[str(i)][0] == tokenise({"x": [text]})["x"][0]
    assert [together[str(i)][0] for i in (3, 4, 8)] == ["", "", ""]
    assert together["0"][0] == "a cat on a mat" and together["1"][0] == "a dog"


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


def test_tokeniser_leaves_no_file_behind():
    folder = Path(ptbtokenizer.__file__).parent
    before = set(folder.iterdir())
    tokenise(REFERENCES)
    assert set(folder.iterdir()) - {folder / "__pycache__"} == before - {folder / "__pycache__"}


def test_java_comes_from_the_package(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert tokenise({"a": ["A Cat!"]}) == {"a": ["a cat"]}


@pytest.mark.parametrize("text", ["a\r\nb", "a\u2028b", " a \t b ", "a ||| b"])
def test_one_line(text):
    assert one_line(text) == "a b"


def test_files_in_every_layout(tmp_path):
    def file(name, content):
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    mapping = file("mapping.json", {"one": "a", "two": "b"})
    results = file("results.json", [{"image_id": 7, "caption": "a"}, {"image_id": "x", "caption": "b"}])
    assert read_predictions(mapping) == {"one": "a", "two": "b"}
    assert read_predictions(results) == {"7": "a", "x": "b"}
    coco = file(
        "coco.json",
        {
            "images": [{"id": 7}],
            "annotations": [{"image_id": 7, "caption": "a", "id": 1}, {"image_id": 7, "caption": "b", "id": 2}],
        },
    )
    assert read_references(coco) == {"7": ["a", "b"]}
    assert read_references(file("lists.json", {"x": ["a"]})) == {"x": ["a"]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}]', "more than once: 1"),
        ('{"1": "a", "1": "b"}', "more than once: 1"),
        ('[{"image_id": 1}]', "rows are not"),
        ('{"1": ["a"]}', "expected COCO results"),
        ("{", "no valid JSON"),
    ],
)
def test_bad_predictions_are_refused(tmp_path, content, says):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ConfigError, match=says):
        read_predictions(tmp_path / "p.json")


@pytest.mark.parametrize("content", ['{"1": []}', '{"1": "a"}', "[]", '{"annotations": [{"caption": "a"}]}'])
def test_bad_references_are_refused(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ConfigError, match=r"r\.json"):
        read_references(tmp_path / "r.json")


def test_images_must_be_the_same():
    with pytest.raises(ConfigError, match="2 predictions are of images without references, first a, b"):
        score_captions(GOOD | {"a": "x", "b": "y"}, REFERENCES)
    with pytest.raises(ConfigError, match="1 images have no prediction, first two"):
        score_captions({"one": "x"}, REFERENCES)
    with pytest.raises(ConfigError, match="no references"):
        score_captions({}, {})


class TestTheScorerCanFail:
    """Planted mistakes must change the score: a scorer that cannot be wrong proves nothing."""

    def test_swapped_images(self):
        assert score_captions({"one": GOOD["two"], "two": GOOD["one"]}, REFERENCES, ("CIDEr",)).values["CIDEr"] < 0.2

    def test_no_tokenizer(self, monkeypatch):
        loud = {key: text.upper() for key, text in GOOD.items()}
        assert round(score_captions(loud, REFERENCES, ("CIDEr",)).values["CIDEr"], 4) == 0.5637
        monkeypatch.setattr(
            "visllama.evaluation.captions.tokenise", lambda captions, _: {k: list(v) for k, v in captions.items()}
        )
        assert score_captions(loud, REFERENCES, ("CIDEr",)).values["CIDEr"] < 0.1
