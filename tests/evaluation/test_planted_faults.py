"""Ten faults planted in the evaluator: each changes a figure or is refused, so no test of a right figure could pass.

A scorer that cannot be wrong proves nothing. Each fault stands beside the right figure; where the fault would be silent
(a plausible figure), the test shows what the evaluator does against it.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.support.judging import SETTINGS, evaluation
from tests.support.said_captions import GOOD, REFERENCES, make_corpus
from tests.support.tiny import maker_of
from visllama.data.sources import judged_sources
from visllama.errors import ConfigError
from visllama.evaluation.captions import CaptionScorer, score_captions
from visllama.evaluation.cider import ReferenceNgrams, cider_scores
from visllama.evaluation.runner import judge
from visllama.evaluation.verb import score_files
from visllama.evaluation.vqa import accuracy


@pytest.fixture(scope="module")
def corpus():
    """Texts of 200 images that need no tokenizer: references, and a caption of each."""
    return make_corpus(200)


@pytest.fixture
def judged(make_model, tmp_path):
    """Judge 12 scenes; the model may not end a caption, so each is cut off."""

    def run(**settings) -> dict:
        source = {"_target_": "visllama.data.scenes.source.ScenesSource", "num_records": 12, "captions_per_record": 5}
        decoding = {"max_new_tokens": 4, "suppress_tokens": [3]}
        config = {"mine": evaluation(task="caption", split="test", batch_size=5, metrics=["CIDEr"], source=source,
                                     decoding=decoding, **settings)}  # fmt: skip
        model = make_model(dtype=torch.float32)
        sources = judged_sources(config, [])
        return judge(model, maker_of(model), config, sources, SETTINGS, tmp_path, "these weights")["mine"]

    return run


def cider(references: dict, captions: dict, frequencies_of: dict | None = None) -> np.ndarray:
    others = None if frequencies_of is None else ReferenceNgrams(frequencies_of)
    return cider_scores(ReferenceNgrams(references), [captions[key][0] for key in references], others)


def test_1_arguments_swapped(corpus):
    """Captions and references exchanged give a plausible figure; the files of the two are no layout of each other."""
    references, captions = corpus
    right = cider(references, captions).mean()
    swapped = cider(captions, {key: texts[:1] for key, texts in references.items()}).mean()
    assert 0.3 * right < swapped != pytest.approx(right, rel=0.02)


def test_1_swapped_files_are_refused(tmp_path):
    (tmp_path / "captions.json").write_text(json.dumps(GOOD))
    (tmp_path / "references.json").write_text(json.dumps(REFERENCES))
    with pytest.raises(ConfigError, match=r"references\.json: expected COCO results"):
        score_files(tmp_path, tmp_path / "references.json", tmp_path / "captions.json")


def test_2_tokenizer_dropped(monkeypatch):
    loud = {key: text.upper() for key, text in GOOD.items()}
    assert round(score_captions(loud, REFERENCES, ("CIDEr",)).values["CIDEr"], 4) == 0.5637
    monkeypatch.setattr(
        "visllama.evaluation.captions.tokenise", lambda captions, _: {k: list(v) for k, v in captions.items()}
    )
    assert score_captions(loud, REFERENCES, ("CIDEr",)).values["CIDEr"] < 0.1


def test_3_ids_shifted_by_one(corpus):
    references, captions = corpus
    keys = list(captions)
    shifted = dict(zip(keys, [captions[key] for key in keys[1:] + keys[:1]], strict=True))
    assert cider(references, shifted).mean() < 0.3 * cider(references, captions).mean()


def test_4_one_reference_only(corpus):
    references, captions = corpus
    one = {key: texts[:1] for key, texts in references.items()}
    assert cider(one, captions).mean() != pytest.approx(cider(references, captions).mean(), rel=0.02)


def test_5_frequencies_of_a_subset(corpus, judged):
    references, captions = corpus
    part = {key: references[key] for key in list(references)[:20]}
    of_part = cider(part, captions).mean()
    of_all = cider(part, captions, references).mean()
    assert of_part != pytest.approx(of_all, rel=0.01)
    assert judged(num_images=6)["n_of"] == 12 and "n_of" not in judged()  # the table warns by it


def test_6_duplicates_counted_twice(tmp_path):
    rows = [{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "a"}, {"image_id": 2, "caption": "b"}]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    (tmp_path / "r.json").write_text(json.dumps({"1": ["a"], "2": ["b"]}))
    with pytest.raises(ConfigError, match="ids stand more than once: 1"):
        score_files(tmp_path, tmp_path / "p.json", tmp_path / "r.json")


def test_7_wrong_leave_one_out():
    """The official script leaves out all equal answers where they have no id: 3 of 10 then score 0.7, not 0.9."""
    answers = ["red"] * 3 + ["blue"] * 7

    def without_all_equal(said: str) -> float:
        turns = [[other for other in answers if other != own] for own in answers]
        return float(np.mean([min(turn.count(said) / 3, 1) for turn in turns]))

    assert accuracy("red", answers) == pytest.approx(0.9)
    assert without_all_equal("red") == pytest.approx(0.7)


def test_8_padding_counted(judged, tmp_path):
    """12 images in batches of 5 leave 3 places; no record comes twice, and n is what was judged."""
    result = judged()
    rows = [json.loads(line) for line in (tmp_path / "evaluations/mine/predictions.jsonl").read_text().splitlines()]
    assert result["n"] == len(rows) == len({row["image_id"] for row in rows}) == 12
    references = {str(number): ["a b", "a c"] for number in range(12)}
    padded = {**{str(number): "a b" for number in range(12)}, "12": "a b"}
    with pytest.raises(ConfigError, match="1 predictions are of images without references, first 12"):
        score_captions(padded, references, ("CIDEr",))


def test_9_truncated_captions_unnoticed(judged, capsys):
    assert judged()["cut_off"] == 12
    assert "12 of 12 were cut off by max_new_tokens=4" in capsys.readouterr().out


def test_10_wrong_tokenizer_named(judged):
    """What is named is what was used: with punctuation the same captions score otherwise."""
    said = {"a": "a cat , a dog .", "b": "a bird"}
    references = {"a": ["a cat, a dog."], "b": ["one bird!"]}
    dropped = CaptionScorer(references, "ptb").score(said, ("BLEU",)).values["BLEU-1"]
    kept = CaptionScorer(references, "ptb_keep_punctuation").score(said, ("BLEU",)).values["BLEU-1"]
    assert dropped != pytest.approx(kept, rel=0.01)
    assert judged(tokenizer="ptb_keep_punctuation")["tokenizer"] == "ptb_keep_punctuation"
    assert judged()["tokenizer"] == "ptb"
