"""Captions by the type of their image: parts of one corpus, in the result, in the table, and of files alike."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from tests.support.verbs import evaluate
from visllama.evaluation.caption_files import types_of
from visllama.evaluation.captions import score_captions
from visllama.evaluation.report import scores_table
from visllama.evaluation.statistics import bootstrap_intervals

SUBJECTS = {"1": "a red cat on a mat", "2": "a dog in the park", "3": "two birds on a wire", "4": "a boat on the sea"}
REFERENCES = {key: [text, f"{text} today", f"there is {text}"] for key, text in SUBJECTS.items()}
PREDICTIONS = {"1": "a red cat on a mat", "2": "a dog sleeps", "3": "two birds on a wire", "4": "a car"}
TYPES = {"1": "in-domain", "2": "in-domain", "3": "out-domain"}
METRICS = ("BLEU", "ROUGE-L", "CIDEr")


def test_a_part_is_scored_by_the_words_of_the_whole_corpus():
    """CIDEr of a part is the mean of its images' own; BLEU is that of the part's counts, as of the part alone."""
    scores = score_captions(PREDICTIONS, REFERENCES, METRICS)
    result = scores.by_type(TYPES)
    assert result["counts"] == {"type": {"in-domain": 2, "out-domain": 1}}
    by_type = result["by_type"]["type"]
    assert list(by_type) == ["in-domain", "out-domain"] and list(by_type["in-domain"]) == list(scores.metrics)
    cider = dict(zip(scores.ids, scores.metrics["CIDEr"].per_image, strict=True))
    assert by_type["in-domain"]["CIDEr"] == pytest.approx((cider["1"] + cider["2"]) / 2, rel=1e-12)
    assert by_type["out-domain"]["CIDEr"] == pytest.approx(cider["3"], rel=1e-12)

    part = {key: PREDICTIONS[key] for key in ("1", "2")}
    alone = score_captions(part, {key: REFERENCES[key] for key in part}, METRICS)
    assert by_type["in-domain"]["BLEU-4"] == pytest.approx(alone.values["BLEU-4"], rel=1e-12)
    assert by_type["in-domain"]["CIDEr"] != pytest.approx(alone.values["CIDEr"], rel=1e-3), "other frequencies"


def test_a_part_of_several_images_has_intervals_which_are_those_of_the_part_alone():
    scores = score_captions(PREDICTIONS, REFERENCES, ("BLEU",))
    intervals = scores.by_type(TYPES)["intervals_by_type"]["type"]
    part = {key: PREDICTIONS[key] for key in ("1", "2")}
    alone = score_captions(part, {key: REFERENCES[key] for key in part}, ("BLEU",))
    assert intervals == {"in-domain": bootstrap_intervals(alone.metrics)}, "of one image nothing can be drawn again"
    assert intervals["in-domain"]["BLEU-1"][0] < intervals["in-domain"]["BLEU-1"][1]


def test_images_without_a_type_make_no_part():
    scores = score_captions(PREDICTIONS, REFERENCES, ("CIDEr",))
    assert scores.by_type({}) == {} and scores.by_type({"unknown": "in-domain"}) == {}


def test_types_stand_in_cocos_images():
    images = [{"id": 1, "domain": "near-domain"}, {"id": 2}, {"id": 3, "domain": 4}, {"id": 5, "type": "night"}, 6]
    assert types_of({"images": images}) == {"1": "near-domain", "5": "night"}
    assert types_of({"1": ["a caption"]}) == types_of([]) == types_of({"images": 3}) == {}


def test_the_table_has_a_part_for_each_type_and_fits():
    scores = score_captions(PREDICTIONS, REFERENCES, METRICS)
    result = {"n": 4, "split": "val", "metrics": scores.values, **scores.by_type(TYPES)}
    lines = shown(result)
    assert max(map(len, lines)) <= 80
    parts = [number for number, line in enumerate(lines) if "in-domain, n = 2" in line or "out-domain, n = 1" in line]
    assert len(parts) == 2
    cider = [line for line in lines[parts[0] : parts[1]] if "CIDEr" in line]
    assert f"{100 * result['by_type']['type']['in-domain']['CIDEr']:.1f}" in cider[0]
    low, high = result["intervals_by_type"]["type"]["in-domain"]["CIDEr"]
    assert f"{100 * low:.1f} - {100 * high:.1f}" in cider[0]

    many = {f"kind {number}": {"CIDEr": 1.0} for number in range(13)}
    lines = shown(result | {"by_type": {"type": many}})
    assert "type: 13, in metrics.json" in "".join(lines) and "kind 1" not in "".join(lines)


def shown(result: dict) -> list[str]:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(scores_table("nocaps", result))
    return console.export_text().splitlines()


def test_files_are_scored_by_type_too(compose_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = [{"id": int(key), "domain": TYPES.get(key)} for key in REFERENCES]
    annotations = [{"image_id": int(key), "caption": text} for key, texts in REFERENCES.items() for text in texts]
    (tmp_path / "r.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (tmp_path / "p.json").write_text(json.dumps(PREDICTIONS))
    cfg = compose_config("evaluate", "predictions=p.json", "references=r.json")
    result = evaluate(cfg)["evaluations"]["predictions"]
    assert result["counts"]["type"] == {"in-domain": 2, "out-domain": 1}
    assert result["by_type"]["type"]["out-domain"]["ROUGE-L"] == pytest.approx(1)
