"""Pictures of a folder, judged by a real model: what `evaluation=files` and `evaluation=pope` leave."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from tests.support.judging import SETTINGS
from tests.support.photos import saved
from tests.support.tiny import maker_of
from visllama.data.scenes.source import ScenesSource
from visllama.data.sources import judged_sources
from visllama.evaluation.per_image import read_scores
from visllama.evaluation.runner import judge

FOLDER = "visllama.evaluation.annotated_folder.AnnotatedFolder"
NUM_PICTURES = 6


@pytest.fixture
def pictures(tmp_path):
    """Write the embedded world's pictures to a folder, each named by its number."""
    (tmp_path / "pictures").mkdir()
    source = ScenesSource("test", NUM_PICTURES, captions_per_record=2)
    for number in range(NUM_PICTURES):
        image = source[number]["image"]
        assert isinstance(image, Image.Image)
        (tmp_path / "pictures" / f"{number}.png").write_bytes(saved(image, "PNG"))
    return tmp_path / "pictures", source


def test_captions_of_a_folder_are_judged_whole_and_by_type(make_model, pictures, tmp_path):
    folder, source = pictures
    domains = ["in-domain", "out-domain", "in-domain"] * 2
    images = [{"id": n, "file_name": f"{n}.png", "domain": domains[n]} for n in range(NUM_PICTURES)]
    annotations = [{"image_id": n, "caption": text} for n in range(NUM_PICTURES) for text in source[n]["captions"]]
    (tmp_path / "r.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    node = {"_target_": FOLDER, "images": str(folder), "references": str(tmp_path / "r.json")}
    config = {
        "task": "caption", "split": "test", "source": node, "metrics": ["ROUGE-L"], "controls": ["blank_images"],
        "batch_size": 4, "tokenizer": "ptb", "document_frequencies": None,
    }  # fmt: skip
    result = judged(make_model, {"files": config}, tmp_path)["files"]
    assert result["counts"] == {"type": {"in-domain": 4, "out-domain": 2}}
    assert set(result["by_type"]["type"]["in-domain"]) == {"ROUGE-L", "CIDEr"}
    whole, parts = result["metrics"]["CIDEr"], result["by_type"]["type"]
    mean = (4 * parts["in-domain"]["CIDEr"] + 2 * parts["out-domain"]["CIDEr"]) / 6
    assert mean == pytest.approx(whole, rel=1e-9), "one corpus: the parts are means of the same scores"
    captions = json.loads((tmp_path / "evaluations" / "files" / "captions.json").read_text())
    assert [row["image_id"] for row in captions] == list(range(NUM_PICTURES)), "COCO's own ids, as numbers"


def test_yes_no_questions_of_a_folder_are_judged_as_pope_does(make_model, pictures, tmp_path):
    folder, _ = pictures
    questions = [{"question_id": n, "image_id": n % NUM_PICTURES, "question": "Is there a star?"} for n in range(12)]
    annotations = [
        {"question_id": n, "image_id": n % NUM_PICTURES, "answers": [{"answer": "no" if n % 3 else "yes"}],
         "answer_type": "even" if n % 2 == 0 else "odd"}
        for n in range(12)
    ]  # fmt: skip
    (tmp_path / "q.json").write_text(json.dumps({"questions": questions}))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": annotations}))
    node = {"_target_": FOLDER, "images": str(folder), "references": str(tmp_path / "a.json")}
    metrics = ["accuracy", "precision", "recall", "F1", "yes_share"]
    config = {
        "task": "vqa", "split": "test", "source": {**node, "questions": str(tmp_path / "q.json")}, "metrics": metrics,
        "controls": ["no_images"], "batch_size": 4, "num_images": None, "decoding": {"max_new_tokens": 3},
    }  # fmt: skip
    result = judged(make_model, {"mine": config}, tmp_path)["mine"]
    assert list(result["metrics"]) == list(result["intervals"]) == metrics and result["n"] == 12
    assert set(result["by_type"]["answer_type"]["even"]) == set(metrics)
    assert set(result["controls"]["no_images"]) == {*metrics, "by_type"}

    # An untrained model says neither no nor not: all its answers count as yes, and 4 of 12 are.
    answers = json.loads((tmp_path / "evaluations" / "mine" / "answers.json").read_text())
    assert not any({"no", "not", "No"} & set(row["answer"].split()) for row in answers)
    expected = {"accuracy": 100 / 3, "precision": 100 / 3, "recall": 100, "F1": 50, "yes_share": 100}
    assert result["metrics"] == pytest.approx(expected, rel=1e-12)
    again = read_scores(tmp_path / "evaluations" / "mine" / "scores.jsonl")
    assert {name: again.metrics[name].value for name in metrics} == pytest.approx(expected, rel=1e-12)


def judged(make_model, evaluations: dict, folder) -> dict:
    model = make_model(dtype=torch.float32)
    sources = judged_sources(evaluations, [])
    return judge(model, maker_of(model), evaluations, sources, SETTINGS, folder, "weights")
